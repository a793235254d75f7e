"""A tiny base model, and rows that it can learn within seconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptermix.training.settings import DataSettings, LoopSettings, LoraSettings, RunSettings
from router_engine.model.tiny import save_tiny

ANIMALS = ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant")
MakeRun = Callable[..., RunSettings]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 rows of which the completion always begins alike."""
    rows = [
        {"prompt": f"{number} {animal}:", "completion": f" yes {animal}", "task": "tiny"}
        for number in range(8)
        for animal in ANIMALS
    ]
    path = tmp_path_factory.mktemp("data") / "train.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture
def make_run(tiny_base: Path, rows_file: Path) -> MakeRun:
    """Settings of a short run; keyword arguments replace fields of its parts or its own."""
    parts: dict[str, Any] = {
        "data": DataSettings(dev_rows=8, batch_tokens=128, sample_texts=5, epochs=2),
        "lora": LoraSettings(rank=4, alpha=8, dropout=0.1),
        "loop": LoopSettings(learning_rate=0.02),
    }

    def make(**changes: Any) -> RunSettings:
        chosen = {name: replace(part, **changes.pop(name, {})) for name, part in parts.items()}
        settings = RunSettings(
            base=str(tiny_base),
            base_name="tiny",
            files=(rows_file,),
            licence="CC0",
            dtype="float32",
            **chosen,
        )
        return replace(settings, **changes)

    return make
