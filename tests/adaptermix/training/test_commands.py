"""`adaptermix train` and `adaptermix pull` as a user types them."""

from __future__ import annotations

import gzip
import inspect
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from adaptermix.cli import pull, train
from adaptermix.cli.fields import command_of
from adaptermix.training.settings import AdamixSettings, DataSettings, LoopSettings, LoraSettings


@pytest.fixture
def program() -> typer.Typer:
    app = typer.Typer()
    train.register(app)
    pull.register(app)
    return app


def _options(base: Path, rows: Path, out: Path, recipe: str = "lora") -> list[str]:
    return [
        *("train", recipe, "--base", str(base), "--data", str(rows), "--data-licence", "CC0"),
        *("--out", str(out), "--dtype", "float32", "--max-rows", "8", "--dev-rows", "4"),
    ]


def test_lora_trains_and_eval_measures(
    program: typer.Typer, tiny_base: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    options = _options(tiny_base, rows_file, out)
    targets = ["--targets", "q_proj", "--targets", "v_proj", "--rank", "2", "--rslora"]
    result = CliRunner().invoke(program, [*options, *targets, "--learning-rate", "0.01"])
    assert result.exit_code == 0, result.output
    assert "dev loss" in result.output
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"]) == (2, True)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == tiny_base.name
    assert "peak 0.01" in (out / "README.md").read_text()

    (tmp_path / "data" / "codealpaca").mkdir(parents=True)
    with gzip.open(tmp_path / "data" / "codealpaca" / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": "Write", "completion": " x"}) + "\n")
    results = tmp_path / "results" / "adapters.json"
    result = CliRunner().invoke(
        program,
        [
            *("train", "eval", "--adapters", str(out), "--data", str(tmp_path / "data")),
            *("--out", str(results), "--tasks", "code", "--base", str(tiny_base)),
        ],
    )
    assert result.exit_code == 0, result.output
    written = json.loads(results.read_text())
    assert written["base"] == tiny_base.name
    assert set(written["results"]["code"]["NLL"]["systems"]) == {"base", "adapter"}
    assert results.with_suffix(".md").read_text().startswith("Completion NLL")


def test_adamix_trains_a_lora_adapter(
    program: typer.Typer, tiny_base: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    options = [
        *_options(tiny_base, rows_file, out, "adamix"),
        *("--copies", "3", "--share", "none", "--routing", "example", "--consistency", "2"),
        *("--init", "independent", "--draws", "2", "--keep-copies", "--rank", "2"),
    ]
    result = CliRunner().invoke(program, options)
    assert result.exit_code == 0, result.output
    assert "random draws: dev loss" in result.output
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    card = (out / "README.md").read_text()
    assert "mean of 3 A and 3 B, drawn for each example, independent initial weights" in card
    assert "consistency 2 |" in card
    assert (tmp_path / "adapter.copies" / "adaptermix.json").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--copies", "0"], "copies is 0; it must be at least 1"),
        (["--consistency", "-1"], "consistency is -1.0"),
        (["--share", "down", "--init", "independent"], "init is 'independent'"),
    ],
)
def test_what_adamix_cannot_do_is_told_in_a_line(
    wrong: list[str],
    told: str,
    program: typer.Typer,
    tiny_base: Path,
    rows_file: Path,
    tmp_path: Path,
) -> None:
    options = _options(tiny_base, rows_file, tmp_path / "adapter", "adamix")
    result = CliRunner().invoke(program, [*options, *wrong])
    assert result.exit_code == 1
    assert told in result.output


@pytest.mark.parametrize("option", ["--share", "--routing", "--init"])
def test_a_choice_that_there_is_not_is_refused_with_those_that_are(
    option: str, program: typer.Typer, tiny_base: Path, rows_file: Path, tmp_path: Path
) -> None:
    options = _options(tiny_base, rows_file, tmp_path / "adapter", "adamix")
    result = CliRunner().invoke(program, [*options, option, "both"])
    assert result.exit_code == 2
    assert "'both' is not one of" in result.output


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--rank", "0"], "rank is 0; it must be at least 1"),
        (["--threads", "0"], "threads is 0"),
        (["--threads", "4096"], "threads is 4096; it must be at most"),
        (["--base", "tiny-random"], "is made anew each time"),
        (["--base", "./absent"], "is no directory or file"),
        (["--targets", "c_attn"], "'c_attn' is no linear layer"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    wrong: list[str],
    told: str,
    program: typer.Typer,
    tiny_base: Path,
    rows_file: Path,
    tmp_path: Path,
) -> None:
    options = _options(tiny_base, rows_file, tmp_path / "adapter")
    result = CliRunner().invoke(program, [*options, *wrong])
    assert result.exit_code == 1
    assert told in result.output
    assert isinstance(result.exception, SystemExit)


def test_every_setting_is_an_option_with_its_default() -> None:
    parameters = inspect.signature(command_of(train.adamix)).parameters
    assert set(inspect.signature(command_of(train.lora)).parameters) < set(parameters)
    for part in (LoraSettings(), AdamixSettings(), DataSettings(), LoopSettings()):
        for name in part.__slots__:
            assert parameters[name].default.default == getattr(part, name)


def test_pull_refuses_what_can_be_no_model(program: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(program, ["pull", "no model", "--cache", str(tmp_path)])
    assert result.exit_code == 1
    assert "error: 'no model' is no id on the hub: an id is owner/name" in result.output


def test_pull_names_what_is_there(program: typer.Typer, tmp_path: Path) -> None:
    kept = tmp_path / "models" / "all-minilm-l6-v2"
    kept.mkdir(parents=True)
    result = CliRunner().invoke(program, ["pull", kept.name, "--cache", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert str(kept) in result.output
