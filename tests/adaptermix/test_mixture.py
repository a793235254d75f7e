"""Mixture: what becomes of arguments, and which are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from adaptermix import Mixture
from adaptermix.errors import AdapterMixError, InvalidInputError
from adaptermix.mixture import _LEVELS
from router_engine.routers.registry import RouterRegistry
from server.schemas.mixture import MixtureChoice, RouterChoice

MATH = {"name": "math", "weight": 0.7}


def test_keywords_and_a_mapping_are_adapters_in_their_order() -> None:
    mixture = Mixture({"team.math@3": 2}, math=0.7)
    assert mixture.to_json() == {"adapters": [{"name": "team.math@3", "weight": 2.0}, MATH]}
    assert isinstance(mixture.body, MixtureChoice)
    assert Mixture(math=0.7) == Mixture({"math": 0.7})
    assert len({Mixture(math=1.0), Mixture({"math": 1}), Mixture(math=2.0)}) == 2


def test_options_of_fixed_mixtures() -> None:
    assert Mixture(math=0.7, combination="linear").to_json() == {
        "adapters": [MATH],
        "combination": "linear",
    }
    copies = {"mode": "ensemble", "members": 4}
    assert Mixture(math=0.7, copies={"math": copies}).to_json() == {
        "adapters": [MATH | {"copies": copies}]
    }
    assert Mixture({"copies": 1.0, "combination": 1.0}).to_json() == {
        "adapters": [{"name": name, "weight": 1.0} for name in ("copies", "combination")]
    }


def test_a_router_with_all_that_it_takes() -> None:
    mixture = Mixture.routed(
        "similarity",
        candidates=("math", "code"),
        level="token",
        every=4,
        lag=2,
        context="keep",
        combination="sum",
        temperature=0.1,
    )
    assert mixture.to_json() == {
        "router": {
            "name": "similarity",
            "candidates": ["math", "code"],
            "level": "token",
            "every": 4,
            "lag": 2,
            "context": "keep",
            "combination": "sum",
            "temperature": 0.1,
        }
    }
    tagged = Mixture.routed("similarity", candidates={"tag": "task"})
    assert tagged.to_json() == {"router": {"name": "similarity", "candidates": {"tag": "task"}}}


def test_a_router_of_one_level_works_there_unasked() -> None:
    registry = RouterRegistry.discover()
    default = RouterChoice.model_fields["level"].default
    elsewhere = {
        name: registry.get(name).levels
        for name in registry.names
        if default not in registry.get(name).levels
    }
    assert {name: (level,) for name, level in _LEVELS.items()} == elsewhere
    mixture = Mixture.routed("hidden_mean", candidates=["math"]).to_json()
    assert mixture == {"router": {"name": "hidden_mean", "level": "token", "candidates": ["math"]}}


def test_every_field_of_the_http_api_can_be_said() -> None:
    arguments = set(Mixture.routed.__annotations__) | {"name"}
    assert set(RouterChoice.model_fields) <= arguments
    assert set(MixtureChoice.model_fields) == {"adapters", "combination", "router"}


def test_the_base_is_no_mixture() -> None:
    assert Mixture.base().to_json() is None
    assert Mixture.base() == Mixture.from_json(None)
    assert repr(Mixture.base()) == "Mixture.base()"


def test_what_it_shows_is_what_makes_it() -> None:
    for mixture in (Mixture(math=0.7), Mixture.routed("uniform", candidates=["math"])):
        assert eval(repr(mixture), {"Mixture": Mixture}) == mixture


Untyped: Any = Mixture  # what types refuse already is refused by itself too
REFUSED: list[tuple[Any, str]] = [
    (lambda: Untyped(), "at least one adapter"),
    (lambda: Untyped("math"), "adapters = 'math'"),
    (lambda: Untyped({"math": 1.0}, math=1.0), "math has two weights"),
    (lambda: Untyped(math="x"), "math = 'x'"),
    (lambda: Untyped(math=float("nan")), "math = nan"),
    (lambda: Untyped(math=True), "math = True"),
    (lambda: Untyped({5: 1.0}), "= 5"),
    (lambda: Untyped(math=1.0, combination="max"), "combination = 'max'"),
    (lambda: Untyped(math=1.0, copies=0.5), "copies = 0.5"),
    (lambda: Untyped(math=1.0, copies={"code": {}}), "copies.code"),
    (lambda: Untyped(math=1.0, copies={"math": {"mode": "x"}}), "copies.math"),
    (lambda: Untyped(math=1.0, copies={"math": {"mode": "soup", "x": 1}}), "x is not a field"),
    (lambda: Untyped.routed("similarity", candidates="math"), "candidates = 'math'"),
    (lambda: Untyped.routed("similarity", candidates=[5]), "candidates.0 = 5"),
    (lambda: Untyped.routed("similarity", candidates={"tags": "a"}), "near: tag"),
    (lambda: Untyped.routed("similarity", candidates=["a"], every=2), "level token"),
    (lambda: Untyped.routed("similarity", candidates=["a"], level="tok"), "level = 'tok'"),
    (lambda: Untyped.routed("similarity", candidates=["a"], top_k={1}), "top_k = {1}"),
    (lambda: Untyped.routed(5, candidates=["a"]), "router = 5"),
    (lambda: Untyped.from_json({"adapter": []}), "near: adapters"),
    (lambda: Untyped.from_json("math"), "'math'"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_no_server_takes_is_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert words in str(caught.value)
    assert isinstance(caught.value, AdapterMixError)
    assert isinstance(caught.value, ValueError)
