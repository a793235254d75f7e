"""The registry of expert kinds in the engine: order of terms, sites, and names."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from router_engine.errors import EngineError
from router_engine.experts.bottleneck import KIND as BOTTLENECK
from router_engine.experts.kinds import GROUP, ExpertKind, ExpertKinds, Term
from router_engine.experts.prompt import KIND as PROMPT

FIRST = ExpertKind("first", PROMPT.load, (Term("feed_forward", "#first", PROMPT.terms[0].add),))
THIEF = ExpertKind("thief", PROMPT.load, (Term("feed_forward", "#serial", PROMPT.terms[0].add),))

ENTRIES = (
    EntryPoint("bottleneck", "router_engine.experts.bottleneck:KIND", GROUP),
    EntryPoint("first", f"{__name__}:FIRST", GROUP),
    EntryPoint("thief", f"{__name__}:THIEF", GROUP),
    EntryPoint("late", "tests.no_such_module:KIND", GROUP),
)


def test_terms_stand_in_the_order_of_the_names_whoever_was_loaded_first() -> None:
    kinds = ExpertKinds(ENTRIES)
    assert kinds.terms("feed_forward") == ()
    assert kinds.get("first") is FIRST
    assert kinds.terms("feed_forward") == FIRST.terms
    assert kinds.get("bottleneck") is BOTTLENECK
    assert kinds.terms("feed_forward") == (*BOTTLENECK.terms, *FIRST.terms)
    assert kinds.terms("linear") == ()


def test_no_kind_takes_the_sites_of_another() -> None:
    kinds = ExpertKinds(ENTRIES)
    kinds.get("bottleneck")
    with pytest.raises(EngineError, match="'thief' takes the sites '#serial' of 'bottleneck'"):
        kinds.get("thief")
    assert kinds.terms("feed_forward") == BOTTLENECK.terms


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("botleneck", r"unknown expert kind 'botleneck' \(known: .*, near: bottleneck\)"),
        ("late", "expert kind 'late' .* cannot be loaded: .*no_such_module"),
    ],
)
def test_what_is_not_there_is_named(name: str, told: str) -> None:
    with pytest.raises(EngineError, match=told):
        ExpertKinds(ENTRIES).get(name)
