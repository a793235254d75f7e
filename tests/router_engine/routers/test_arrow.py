"""Arrow's parameters, and what they become."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from router_engine.routers.base import LayerRoutingParams
from router_engine.routers.errors import RouterInputError
from router_engine.routers.registry import RouterRegistry

REGISTRY = RouterRegistry.discover()


def test_the_defaults_are_those_of_peft() -> None:
    (name,) = REGISTRY.layer_routers()
    assert REGISTRY.layer_routers()[name]({}) == LayerRoutingParams(
        "arrow", top_k=3, temperature=1.0
    )
    gate = REGISTRY.get("arrow").gate({"top_k": 1, "temperature": 2})
    assert gate == LayerRoutingParams("arrow", top_k=1, temperature=2.0)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"use_gks": True}, "'arrow' takes no parameter 'use_gks'"),
        ({"topk": 1}, "did you mean top_k"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_k": 1.5}, "top_k = 1.5"),
        ({"temperature": 0}, "temperature = 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
    ],
)
def test_wrong_parameters_are_refused_by_name(params: dict[str, Any], words: str) -> None:
    with pytest.raises(RouterInputError, match=words):
        REGISTRY.get("arrow").gate(params)


def test_another_level_is_refused() -> None:
    with pytest.raises(RouterInputError, match="works at level layer, not 'token'"):
        REGISTRY.get("arrow").check("token", {})
    with pytest.raises(RouterInputError, match="works at level request or token, not 'layer'"):
        REGISTRY.get("similarity").gate({})


def test_keys_are_equal_for_equal_gates_only() -> None:
    gates = [
        LayerRoutingParams("arrow", 1, 1.0),
        LayerRoutingParams("arrow", 2, 1.0),
        LayerRoutingParams("arrow", 1, 2.0),
        LayerRoutingParams("x", 1, 1.0),
    ]
    assert all(one.key != other.key for one, other in combinations(gates, 2))
    assert LayerRoutingParams("arrow", 1, 1.0).key == gates[0].key
