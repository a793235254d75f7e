"""Engines on tiny random models, with adapters of mixed ranks in a real store."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from filelock import FileLock

from router_engine.backends.cpu.build import build
from router_engine.config import EngineConfig
from tests.router_engine import paths
from tests.router_engine.kernels.triton_process import interpreter
from tests.router_engine.paths import (
    EnginePath,
    InterpretedEngine,
    PathEngine,
    PathHarness,
    path_params,
)
from tests.support.harness import EngineHarness
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

__all__ = ["interpreter"]  # a fixture

ALL_LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
RANKS = (4, 8, 2, 4, 4, 16)

WITHOUT_DECODER = ("gpt2",)  # families that only transformers' own code runs

MakeHarness = Callable[..., EngineHarness]


class MakeEngine(Protocol):
    """Makes an engine for a tiny family on the test's path."""

    def __call__(self, family: str = "llama", config: EngineConfig | None = None) -> PathEngine: ...


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LoRA folders for the tiny llama: ranks 4, 8, 2, 4, 4, 16; the first four on all linears."""
    root = tmp_path_factory.mktemp("folders")
    return [
        make_lora_folder(
            root / f"a{index}",
            rank=rank,
            targets=ALL_LINEARS if index < 4 else ATTENTION,
            seed=index + 1,
        )
        for index, rank in enumerate(RANKS)
    ]


@pytest.fixture
def make_harness(tmp_path: Path) -> Iterator[MakeHarness]:
    """Builds harnesses that are checked and closed at the end."""
    made: list[EngineHarness] = []

    def make(*args: Any, **options: Any) -> EngineHarness:
        made.append(EngineHarness(tmp_path / str(len(made)), *args, **options))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoint directories of the tiny families, each written once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.exists() else save_family(path, family)

    return folder


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the library, one for all workers; fails with the compiler's words where it must."""
    cache = _of_all_workers(tmp_path_factory) / "kernels"
    cache.mkdir(exist_ok=True)
    with FileLock(cache / "lock"):
        build(cache)
    return cache


def _of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the suite, which its workers share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(
    params=path_params(paths.REFERENCE, paths.CPU, paths.INT8, paths.TRITON, paths.CUDA)
)
def path(request: pytest.FixtureRequest) -> EnginePath:
    """The path that a parity test's engines take."""
    chosen: EnginePath = request.param
    return chosen


@pytest.fixture
def path_cache(
    path: EnginePath, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where the path finds compiled kernels and verdicts; those that need none compile nothing."""
    if not path.is_compiled:
        return _of_all_workers(tmp_path_factory) / "verdicts"
    cache: Path = request.getfixturevalue("kernel_cache")
    return cache


@pytest.fixture
def make_engine(
    path: EnginePath,
    path_cache: Path,
    family_folder: Callable[[str], Path],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Iterator[MakeEngine]:
    """Makes engines that are checked and closed at the end."""
    made: list[PathEngine] = []
    make_one: Callable[..., PathEngine] = PathHarness
    if path is paths.TRITON:
        make_one = functools.partial(InterpretedEngine, request.getfixturevalue("interpreter"))

    def make(family: str = "llama", config: EngineConfig | None = None) -> PathEngine:
        engine = make_one(
            tmp_path / str(len(made)),
            path,
            kernel_cache=path_cache,
            model=family_folder(family),
            decoder=family not in WITHOUT_DECODER,
            config=config,
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
