"""The adapters that come with the project are whole and say what binds them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from adaptermix.cli.main import app
from adaptermix.training.data import read_rows
from tests.conftest import REPOSITORY

NAMES = ("math", "science", "code", "reading")
LICENCES = {
    "math": "MIT",
    "science": "CC BY-SA 4.0",
    "code": "CC BY-NC 4.0",
    "reading": "CC BY-SA 4.0",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_rank_8_adapter_of_the_default_base(
    name: str, example_adapters: list[Path]
) -> None:
    [folder] = [path for path in example_adapters if path.name == name]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 30 * 4 * 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() and tensor.any() for tensor in tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_card_and_texts_of_its_own(
    name: str, example_adapters: list[Path]
) -> None:
    [folder] = [path for path in example_adapters if path.name == name]
    assert f"**{LICENCES[name]}" in (folder / "README.md").read_text()
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert len(set(texts)) == len(texts) >= 30
    assert all("\n\nAnswer: " in text for text in texts)


@pytest.mark.parametrize("place", [0, 1], ids=["lora", "bottleneck"])
def test_a_command_of_the_training_page_makes_an_adapter_of_the_rows_that_come_along(
    place: int, tiny_base: Path, tmp_path: Path
) -> None:
    """As it is written there, but for the base, the folder and one epoch."""
    rows = REPOSITORY / "examples" / "data" / "places.jsonl"
    assert len({row.prompt for row in read_rows(rows)}) == 48
    page = (REPOSITORY / "docs" / "training.md").read_text()
    commands = re.findall(r"^adaptermix (train adamix .*?[^\\])$", page, re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    words = {"examples/data/places.jsonl": str(rows), "places": str(tmp_path / "places")}
    options = [words.get(word, word) for word in shlex.split(commands[place].replace("\\\n", " "))]
    result = CliRunner().invoke(app, [*options, "--base", str(tiny_base), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    tensors = load_file(tmp_path / "places" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * (2, 1)[place]
