"""`adaptermix bench uncertainty` as a user runs it: a real server, a tiny model, a few rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptermix.cli.main import app
from scripts.figures import UNCERTAINTY
from tests.adaptermix.evaluation.routing.conftest import data
from tests.support.copies import make_copies

__all__ = ["data"]  # a fixture


def bench(data: Path, *arguments: str) -> Result:
    options = ["bench", "uncertainty", "--model", "tiny-random", "--kernels", "reference"]
    options += ["--data", str(data), "--unfamiliar", "gsm8k", "--members", "2", "--rows", "6"]
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, [*options, *arguments], env=environment)


@pytest.mark.slow
def test_a_small_study_and_its_page(data: Path, tmp_path: Path) -> None:
    folder = make_copies(tmp_path / "adamix").folder
    out = tmp_path / "uncertainty"
    done = bench(data, "--adapter", str(folder), "--speed-rounds", "1", "--out", str(out))
    assert done.exit_code == 0, done.output
    result = json.loads(out.with_suffix(".json").read_text())
    (adapter,) = result["adapters"]
    assert adapter["adapter"] == "adamix"
    assert adapter["ways"]["ensemble"]["rows"] == 6
    assert adapter["speed"]["ensemble"]["relative"] > 0
    assert len(adapter["unfamiliar"]) == 3
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "| adamix | ensemble | mutual information |" in out.with_suffix(".md").read_text()
    marks = "".join(
        f"<!-- figures: {name} -->\n<!-- end of figures -->\n" for name in UNCERTAINTY.writers
    )
    page = UNCERTAINTY.fill(marks, tmp_path, "pictures")
    assert "![Reliability of the average and of the ensemble](pictures/uncertainty.png)" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adapter", "a", "--members", "1"], "members is 1; it must be from 2 to 16"),
        (["--adapter", "x/a", "--adapter", "y/a"], "adapter names a, a"),
        (["--adapter", "a", "--rows", "1"], "rows is 1; it must be at least 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(data: Path, arguments: list[str], words: str) -> None:
    done = bench(data, *arguments)
    assert done.exit_code == 1
    assert words in done.output
