"""`adaptermix train moa` and `train moe-lora` as a user types them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptermix.cli import train
from adaptermix.cli.fields import command_of
from adaptermix.cli.main import app
from adaptermix.training.settings import (
    DataSettings,
    GatedLoraSettings,
    LoopSettings,
    MoaSettings,
    MoeLoraSettings,
)
from tests.conftest import REPOSITORY

ROWS = REPOSITORY / "examples" / "data" / "places.jsonl"
PAGE = REPOSITORY / "docs" / "training.md"
COMMANDS = re.findall(
    r"^adaptermix (train mo.*?[^\\])$", PAGE.read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_the_commands_of_the_training_page_make_adapters_of_the_rows_that_come_along(
    command: str, tiny_base: Path, tmp_path: Path
) -> None:
    """As they are written there, but for the base, the folder and the epochs."""
    words = {"examples/data/places.jsonl": str(ROWS)}
    options = [words.get(word, word) for word in shlex.split(command.replace("\\\n", " "))]
    options[options.index("--out") + 1] = str(tmp_path / "places")
    extra = ["--base", str(tiny_base), "--epochs", "1"]
    result = CliRunner().invoke(app, [*options, *extra])
    assert result.exit_code == 0, result.output
    assert "dev loss" in result.output
    assert "std over the experts of a token" in result.output
    kind = "MoE-LoRA" if "moe-lora" in options else "MoA"
    assert f"A {kind} adapter for `{tiny_base.name}`" in (tmp_path / "places/README.md").read_text()
    manifest = json.loads((tmp_path / "places" / "adaptermix.json").read_text())
    assert len(manifest["routers"]) == 2


def test_the_training_page_shows_each_kind_once() -> None:
    assert [command.split()[1] for command in COMMANDS] == ["moa", "moa", "moe-lora"]


@pytest.mark.parametrize(
    ("command", "wrong", "told"),
    [
        ("moa", ["--targets", "lm_head"], "'lm_head' is no linear layer inside a layer"),
        ("moa", ["--ranks", "up_proj=4"], "ranks names 'up_proj', which is no target"),
        ("moa", ["--gamma-max", "0.2"], "gamma_max is 0.2; it must be left at 0.5"),
        ("moe-lora", ["--top-k", "9"], "top_k is 9; it must be from 1 to experts, 4"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    command: str, wrong: list[str], told: str, tiny_base: Path, tmp_path: Path
) -> None:
    options = ["--base", str(tiny_base), "--data", str(ROWS), "--data-licence", "CC0"]
    options += ["--dev-rows", "8"]
    result = CliRunner().invoke(
        app, ["train", command, *options, "--out", str(tmp_path / "a"), *wrong]
    )
    assert result.exit_code == 1
    assert told in result.output


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (train.moa, [GatedLoraSettings(), MoaSettings()]),
        (train.moe_lora, [GatedLoraSettings(), MoeLoraSettings()]),
    ],
)
def test_every_setting_is_an_option_with_its_default(command: Any, parts: list[Any]) -> None:
    parameters = inspect.signature(command_of(command)).parameters
    for part in (*parts, DataSettings(), LoopSettings()):
        for field in dataclasses.fields(part):
            assert parameters[field.name].default.default == field.default
