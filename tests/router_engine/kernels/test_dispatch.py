"""Which kernels are chosen, and what a wrong choice is told."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from router_engine.config import EngineConfig, KernelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.kernels.base import KernelSpec
from router_engine.kernels.dispatch import GROUP, KernelRegistry
from router_engine.kernels.reference.operations import ReferenceOperations
from tests.router_engine.conftest import MakeHarness

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _refuse(device: torch.device, dtype: torch.dtype) -> str | None:
    return f"it never serves {device}"


PICKY = KernelSpec("picky", "refuses", _refuse, ReferenceOperations)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "chosen"),
    [
        ("auto", CPU, torch.float32, "reference"),
        ("auto", CUDA, torch.bfloat16, "triton"),
        ("auto", CUDA, torch.float64, "reference"),
        ("cpu", CPU, torch.bfloat16, "reference"),
        ("reference", CUDA, torch.float16, "reference"),
        ("triton", CUDA, torch.float16, "triton"),
    ],
)
def test_the_choice(name: str, device: torch.device, dtype: torch.dtype, chosen: str) -> None:
    assert KernelRegistry.discover().choose(name, device, dtype).name == chosen


def test_a_refusal_says_why() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'triton' cannot run: device cpu is not cuda"):
        KernelRegistry.discover().choose("triton", CPU, torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"float64 is not one of torch.float32"):
        KernelRegistry.discover().choose("triton", CUDA, torch.float64)


def test_an_engine_refuses_unknown_kernels_by_name(make_harness: MakeHarness) -> None:
    with pytest.raises(EngineError, match=r"unknown kernels 'fast' \(known: auto, cpu, reference"):
        make_harness(config=EngineConfig(kernels=KernelConfig("fast")))


def test_packages_may_add_kernels() -> None:
    picky = EntryPoint("picky", f"{__name__}:PICKY", GROUP)
    registry = KernelRegistry([picky])
    assert registry.get("picky") is PICKY
    with pytest.raises(UnsupportedModelError, match="it never serves cpu"):
        registry.choose("picky", CPU, torch.float32)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (("a", "nowhere_to_be_found:SPEC"), "cannot be loaded"),
        (("a", f"{__name__}:PICKY"), "is no KernelSpec with the name 'a'"),
        (("a", f"{__name__}:CPU"), "is no KernelSpec"),
    ],
)
def test_a_broken_entry_is_named(entries: tuple[str, str], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        KernelRegistry([EntryPoint(*entries, GROUP)]).get("a")


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(EngineError, match="two sets of kernels are named 'a'"):
        KernelRegistry([EntryPoint("a", "one:SPEC", GROUP), EntryPoint("a", "two:SPEC", GROUP)])
