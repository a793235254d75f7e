"""Every set of kernels, a package's own among them, against the equations of the seven operations.

What a token does not use never reaches it: with poison in the rows of weight 0 the numbers are
those with zeros there, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import pytest
import torch

from adapters_store.expert_kinds.base import Activation
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from router_engine.kernels.dispatch import GROUP
from router_engine.kernels.reference.experts import ACTIVATIONS
from tests.router_engine.kernels import operation_checks as checks
from tests.support.packages import install
from tests.support.waiting import HANG_SECONDS

Kind = Literal["linear", "swiglu"]

NUMBERS = (3e38, -3e38, torch.inf, -torch.inf, torch.nan)
OUTPUTS = 5


class RunOn(Protocol):
    """Calls a check with a device and a set's name before its own arguments."""

    def __call__(self, check: Callable[..., None], *arguments: object) -> None: ...


@pytest.fixture(
    params=["reference", "loops", "triton", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def on(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunOn:
    """`loops` comes by the entry point of a package; `triton` is interpreted, or compiled.

    The checks are the same for all.
    """
    name: str = request.param
    if name == "cuda":
        return lambda check, *arguments: check("cuda", "triton", *arguments)
    if name == "triton":
        pool: ProcessPoolExecutor = request.getfixturevalue("interpreter")
        return lambda check, *arguments: pool.submit(check, "cpu", name, *arguments).result(
            HANG_SECONDS
        )
    install(tmp_path, monkeypatch, GROUP, {"loops": "tests.support.their_kernels:LOOPS"})
    return lambda check, *arguments: check("cpu", name, *arguments)


def test_low_rank_mixtures(on: RunOn) -> None:
    on(checks.check_low_rank)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottlenecks(on: RunOn, activation: Activation) -> None:
    on(checks.check_bottleneck, activation)


def test_serial_bottlenecks(on: RunOn) -> None:
    on(checks.check_serial_bottleneck)


def test_masked_gates_are_tokens_left_out(on: RunOn) -> None:
    on(checks.check_masked_gates_are_tokens_left_out)


def test_prompts(on: RunOn) -> None:
    on(checks.check_prompts)


@pytest.mark.parametrize("hidden", [0, 12], ids=["linear", "swiglu"])
@pytest.mark.parametrize("threshold", [None, ThresholdSpec(0.5, None), ThresholdSpec(1.0, "t")])
def test_sigmoid_gating(on: RunOn, hidden: int, threshold: ThresholdSpec | None) -> None:
    kind: Kind = "swiglu" if hidden else "linear"
    spec = GatingNetworkSpec(
        *("layer", kind, "pre_norm", OUTPUTS, checks.WIDTH, "r", hidden), threshold=threshold
    )
    on(checks.check_gating, spec)


@pytest.mark.parametrize("top_k", [None, 1, 3, OUTPUTS])
def test_softmax_gating(on: RunOn, top_k: int | None) -> None:
    spec = GatingNetworkSpec(
        *("layer", "linear", "post_norm", OUTPUTS, checks.WIDTH, "r"),
        activation="softmax",
        top_k=top_k,
    )
    on(checks.check_gating, spec)


@pytest.mark.parametrize("prefix", [None, "net"])
def test_a_gate_that_is_not_a_number_is_not_closed(on: RunOn, prefix: str | None) -> None:
    spec = GatingNetworkSpec(
        *("layer", "linear", "post_norm", 2, checks.WIDTH, "r"),
        threshold=ThresholdSpec(0.5, prefix),
    )
    on(checks.check_a_gate_that_is_no_number, spec)


def test_layer_routing(on: RunOn) -> None:
    on(checks.check_layer_routing)


@pytest.mark.parametrize("window", [None, 3])
def test_attention(on: RunOn, window: int | None) -> None:
    on(checks.check_attention, window)


@pytest.mark.parametrize("number", NUMBERS)
def test_poison_of_others(on: RunOn, number: float) -> None:
    on(checks.check_poisoned_low_rank, number)
    on(checks.check_poisoned_bottlenecks, number)
    on(checks.check_poisoned_prompts, number)
    on(checks.check_poisoned_candidates, number)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("window", [None, 3])
def test_slots_of_others_and_past_the_context(on: RunOn, window: int | None, number: float) -> None:
    on(checks.check_slots_of_others, window, number)
