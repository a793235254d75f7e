"""The HTTP process loads its tokenizer without torch, unless somebody else may want it there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from router_engine.model.tiny_tokenizer import tiny_tokenizer

LOADING = """
import sys
from router_engine.routers.registry import RouterRegistry
from server.models import BaseFiles, load_tokenizer
tokenizer = load_tokenizer(BaseFiles("tiny", sys.argv[1]))
assert tokenizer.decode(tokenizer.encode("one two")) == "one two"
print("torch" in sys.modules)
if "torch" not in sys.modules:
    assert "hidden_mean" in RouterRegistry.discover().hidden_names  # every router is read for it
    assert "torch" not in sys.modules
import torch
print(torch.ones(2).sum().item())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def loaded(folder: Path, *paths: Path) -> list[str]:
    """What a fresh interpreter says of it, with `paths` beside its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path.cwd(), *paths]))}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "PyTorch was not found" not in done.stderr
    return done.stdout.split()


def test_the_tokenizer_comes_without_torch_which_can_still_be_imported(folder: Path) -> None:
    assert loaded(folder) == ["False", "2.0"]


def test_beside_an_installed_router_nothing_is_hidden(folder: Path, tmp_path: Path) -> None:
    info = tmp_path / "site" / "router_of_others-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: router-of-others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adaptermix.routers]\nothers = others:SPEC\n")
    assert loaded(folder, tmp_path / "site") == ["True", "2.0"]


def test_torch_that_is_loaded_stays(folder: Path) -> None:
    from server.models import BaseFiles, load_tokenizer

    before = sys.modules.get("torch")
    assert before is not None  # the tiny tokenizer's module has it
    load_tokenizer(BaseFiles("tiny", str(folder)))
    assert sys.modules["torch"] is before
