"""The least that launches cost: by hand for some, and as many of each as a step makes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu.roofline import A100, H200, DecodeStep
from router_engine.config import SchedulerConfig
from tests.support.card_engine import EVERY_LINEAR, card_engine, publish_loras
from tests.support.harness import request

LLAMA_8B_NUMBERS = 8_030_261_248
KERNELS = {
    "norm": "norm_kernel",
    "rotation, keys and values stored": "rope_kernel",
    "attention": "attend_kernel",
    "parts of long contexts joined": "combine_kernel",
    "activation": "silu_kernel",
    "shrink": "shrink_tiles_kernel",
    "expand": "expand_tiles_kernel",
}


def test_the_base_reads_its_weights() -> None:
    step = DecodeStep("llama-8b", requests=1, context=1)
    embedding = 128_256 * 4096
    read = sum(each.count * each.num_bytes for each in step.launches())
    assert read == pytest.approx(2 * (LLAMA_8B_NUMBERS - embedding), rel=2e-3)
    assert step.seconds(H200) == pytest.approx(read / 4.8e12)


def test_by_hand() -> None:
    found = {each.name: each for each in DecodeStep("llama-8b", 32, 128, rows=128).launches()}
    gate_up = found["gate and up"]
    assert gate_up.num_bytes == 2 * (4096 * 28_672 + 32 * (4096 + 28_672))
    assert gate_up.operations == 2 * 32 * 4096 * 28_672
    assert found["attention"].num_bytes == 2 * 32 * (128 * 2 * 1024 + 2 * 4096)
    shrink = found["shrink: q, k, v"]
    assert shrink.num_bytes == 2 * (3 * 128 * 4096 + 32 * 4096) + 4 * 32 * 3 * 128


def test_many_requests_are_bound_by_products() -> None:
    found = {each.name: each for each in DecodeStep("llama-8b", 4096, 128).launches()}
    gate_up = found["gate and up"]
    assert gate_up.seconds(A100) == gate_up.operations / A100.products


def test_launches_are_those_of_a_step(tmp_path: Path) -> None:
    """Of our kernels; products are the libraries'. Without graphs each launch is seen."""
    limits = SchedulerConfig(max_step_tokens=64, max_running=4)
    expected: Counter[str] = Counter()
    for each in DecodeStep("tiny", requests=1, context=8, rows=16).launches():
        name = KERNELS.get(each.name.partition(":")[0])
        if name is not None:
            expected[name] += each.count
    with card_engine(tmp_path, limits, enforce_eager=True) as (card, harness):
        (digest,) = publish_loras(harness, tmp_path, (8, EVERY_LINEAR))
        harness.add(request("r", [1, 2, 3], {digest: 1.0}))
        while not harness.answers["r"].tokens:
            harness.step()
        card.launches.clear()
        harness.step()
        # Without a graph a list has no room to spare, and nothing to join is no launch.
        del expected["combine_kernel"]
        assert dict(card.launches) == dict(expected)
