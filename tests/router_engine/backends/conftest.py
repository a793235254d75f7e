"""The compiled kernels, built once a session in a cache of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router_engine.backends.cpu.build import build
from router_engine.backends.cpu.library import Library
from router_engine.config import CacheConfig, CpuIsa, EngineConfig, KernelConfig
from tests.router_engine.kernels.triton_process import run
from tests.support.harness import EngineHarness
from tests.support.isas import here

__all__ = ["run"]  # a fixture

Pair = tuple[EngineHarness, EngineHarness]


@pytest.fixture(params=here())
def isa(request: pytest.FixtureRequest) -> CpuIsa:
    """Each instruction set of the machine in turn."""
    chosen: CpuIsa = request.param
    return chosen


@pytest.fixture
def library(isa: CpuIsa, kernel_cache: Path) -> Library:
    return Library(build(kernel_cache), isa)


@pytest.fixture
def make_pair(
    make_harness: Callable[..., EngineHarness], kernel_cache: Path, isa: CpuIsa
) -> Callable[..., Pair]:
    """The same engine on the reference and on the C++ decoder."""

    def make(*args: Any, **options: Any) -> Pair:
        config = options.pop("config", EngineConfig(cache=CacheConfig(num_blocks=512)))
        reference, fast = (
            make_harness(*args, config=replace(config, kernels=kernels), **options)
            for kernels in (KernelConfig("reference"), KernelConfig("cpu", kernel_cache, isa))
        )
        return reference, fast

    return make
