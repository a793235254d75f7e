"""The registry of expert kinds in the store: what a package's spec must be."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Literal

import pytest

from adapters_store.errors import StoreError
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.registry import BUILT_IN, GROUP, ExpertSpecRegistry


@dataclass(frozen=True)
class Half:
    """A spec that lacks most of what one must have."""

    module: str
    gate: int | None = None
    kind: Literal["half"] = "half"


def entry(name: str, attribute: str, module: str = __name__) -> EntryPoint:
    return EntryPoint(name, f"{module}:{attribute}", GROUP)


@pytest.mark.parametrize(
    ("added", "told"),
    [
        (entry("half", "Half"), "no site, rows, row_widths, extras, tensor_shapes, problems, mis"),
        (entry("half", "entry"), "is no dataclass"),
        (entry("half", "LoraExpertSpec"), "has the kind 'lora', not 'half'"),
        (entry("half", "Nothing"), "expert kind 'half' .* cannot be loaded"),
        (entry("half", "Spec", "tests.no_such_module"), "cannot be loaded: .*no_such_module"),
    ],
)
def test_what_is_no_spec_is_refused_when_it_is_asked_for(added: EntryPoint, told: str) -> None:
    registry = ExpertSpecRegistry([*BUILT_IN, added])
    assert registry.names == ("lora", "bottleneck", "prompt", "half")
    assert registry.get("lora") is LoraExpertSpec
    with pytest.raises(StoreError, match=told):
        registry.get("half")


def test_no_kind_is_there_twice() -> None:
    with pytest.raises(StoreError, match="two expert kinds are named 'lora'"):
        ExpertSpecRegistry([*BUILT_IN, entry("lora", "Half")])
