"""The choice of what computes on a CPU: measured once, by the least that it falls behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from router_engine.config import CacheConfig, CpuIsa, EngineConfig, KernelConfig
from router_engine.kernels.cpu.build import build
from router_engine.model.cpu.choice import Choice, choose
from router_engine.model.cpu.trial import ROWS, TORCH, LayerShape, TorchTrial, measure
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import request
from tests.support.isas import here

SHAPE = LayerShape(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96)


def test_the_one_that_is_least_behind_is_the_fastest() -> None:
    seconds = {"avx2": {1: 1.0, 8: 4.0}, "avx512": {1: 1.1, 8: 2.0}, TORCH: {1: 3.0}}
    choice = Choice("avx2", seconds)
    assert choice.behind == pytest.approx({"avx2": 1.0, "avx512": 1.1, TORCH: 3.0})  # rows of all
    assert choice.isa == "avx2"
    both = Choice("avx512", {name: seconds[name] for name in ("avx2", "avx512")})
    assert both.isa == "avx512"


def test_as_many_rows_are_measured_as_there_is_time_for() -> None:
    ran: list[int] = []
    assert list(measure(ran.append, 3600.0)) == list(ROWS)
    assert set(ran) == set(ROWS)
    assert list(measure(ran.append, -1.0)) == [ROWS[0]]


@pytest.mark.parametrize("rows", ROWS)
def test_torch_computes_the_layer_too(rows: int) -> None:
    TorchTrial(SHAPE, torch.float32).run(rows)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_measured_once_and_kept(
    dtype: torch.dtype, *, int8: bool, kernel_cache: Path, tmp_path: Path
) -> None:
    library = build(kernel_cache)
    first = choose(library, tmp_path, SHAPE, dtype, int8=int8)
    assert first == choose(library, tmp_path, SHAPE, dtype, int8=int8)
    assert len(list(tmp_path.iterdir())) == 1
    assert set(first.seconds) == {*here()[-3:], *([] if int8 else [TORCH])}
    assert first.chosen in (first.isa, TORCH)
    assert first.isa in here()


@pytest.mark.slow
@pytest.mark.parametrize("isa", here())
def test_the_set_that_is_asked_for_computes(
    isa: CpuIsa, make_harness: MakeHarness, kernel_cache: Path
) -> None:
    config = EngineConfig(cache=CacheConfig(num_blocks=64))
    kernels = KernelConfig("cpu", kernel_cache, isa)
    harness = make_harness(config=EngineConfig(cache=config.cache, kernels=kernels))
    harness.run(request("r", [5, 6, 7], max_new_tokens=2))
    assert harness.engine.stats().kernels == isa


def test_without_the_decoder_torch_computes(make_harness: MakeHarness) -> None:
    assert make_harness().engine.stats().kernels == TORCH
