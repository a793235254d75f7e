"""Engines on tiny random models, with adapters of mixed ranks in a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import EngineHarness
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

ALL_LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
RANKS = (4, 8, 2, 4, 4, 16)

MakeHarness = Callable[..., EngineHarness]


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
