"""A base on a hub is read at the revision that is asked for, by every recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptermix.evaluation.scoring.models import Systems
from adaptermix.training.recipes.adamix import train_adamix
from adaptermix.training.recipes.lora import train_lora
from adaptermix.training.recipes.moa import train_moa
from adaptermix.training.run import Outcome
from adaptermix.training.settings import AdamixSettings, MoaSettings
from tests.adaptermix.cli.test_edges import require_refused
from tests.adaptermix.cli.test_main import run
from tests.adaptermix.training.conftest import MakeRun
from tests.support.hub import Hub

MODEL = "owner/tiny"
# A bottleneck takes none of LoRA's own.
SHORT: dict[str, Any] = {"data": {"epochs": 1}, "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0}}
RECIPES: dict[str, Callable[..., Outcome]] = {
    "lora": train_lora,
    "adamix": lambda *given: train_adamix(*given, adamix=AdamixSettings(copies=2)),
    "bottlenecks": lambda *given: train_adamix(*given, adamix=AdamixSettings(kind="bottleneck")),
    "moa": lambda *given: train_moa(*given, moa=MoaSettings(parallel=4)),
}


@pytest.fixture
def at_v1(hub: Hub, tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """The base of a run, on a hub whose main branch holds nothing that could be read."""
    hub.publish(MODEL, tiny_base, "v1")
    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    (broken / "tokenizer.json").write_text("{}")
    hub.publish(MODEL, broken)
    return {"base": MODEL, "revision": "v1"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_on_the_revision(
    recipe: str, at_v1: dict[str, Any], make_run: MakeRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert RECIPES[recipe](make_run(**at_v1, **SHORT), out).losses
    assert "for `tiny` at revision `v1`, trained with" in (out / "README.md").read_text()


def test_systems_are_measured_on_the_revision(
    at_v1: dict[str, Any], make_run: MakeRun, tmp_path: Path
) -> None:
    train_lora(make_run(data={"epochs": 1}), tmp_path / "one")
    assert Systems(MODEL, {"one": tmp_path / "one"}, "float32", "cpu", "v1").names


def test_a_folder_has_no_revision(tiny_base: Path, rows_file: Path, tmp_path: Path) -> None:
    given = ("--base", str(tiny_base), "--revision", "v1", "--data", str(rows_file))
    done = run("train", "lora", *given, "--data-licence", "CC0", "--out", str(tmp_path / "out"))
    require_refused(done, "revision is 'v1', which only a hub id")
