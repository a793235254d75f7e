"""The cost of 8-bit weights, measured on a tiny checkpoint with one adapter and one task."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.quantization import markdown, result_tables, run_quantization
from adaptermix.bench.settings import ModelSettings, QuantizationSettings
from adaptermix.evaluation.quantization import compare_nll, task_adapters
from scripts.figures import PERFORMANCE
from tests.support.tiny import make_lora_folder, save_family

ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an adapter for the task math, and its test rows."""
    root = tmp_path_factory.mktemp("quantization")
    save_family(root / "model", "llama")
    make_lora_folder(root / "adapters" / "math")
    rows = [
        {"prompt": f"What is {n} and {n}?\n\nAnswer:", "completion": f" {2 * n}", "task": "gsm8k"}
        for n in range(10)
    ]
    task = root / "data" / "gsm8k"
    task.mkdir(parents=True)
    with gzip.open(task / "test.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return root


def _settings(folder: Path) -> QuantizationSettings:
    return QuantizationSettings(
        data=folder / "data",
        adapters=folder / "adapters",
        rows=ROWS,
        requests=(1, 2),
        rounds=1,
        out=folder / "quantization",
    )


def _run(settings: QuantizationSettings, model: ModelSettings) -> dict[str, Any]:
    adapters = task_adapters(settings.adapters)
    return run_quantization(
        settings, model, lambda subject: compare_nll(subject, adapters, settings)
    )


def test_both_are_measured_on_the_same_rows_and_steps(folder: Path) -> None:
    model = ModelSettings(model=str(folder / "model"), kernels="reference")
    result = _run(_settings(folder), model)
    assert [(line["task"], line["system"]) for line in result["nll"]] == [
        ("math", "base"),
        ("math", "math"),
    ]
    for line in result["nll"]:
        assert line["rows"] == ROWS
        change = line["difference"]
        assert change["mean"] == pytest.approx(line["int8"]["mean"] - line["none"]["mean"])
        assert change["low"] <= change["mean"] <= change["high"]
        assert 0 < abs(change["mean"]) < 0.1  # rounded, and not by much
    base, math = (line["none"]["mean"] for line in result["nll"])
    assert base != math
    steps = [(line["case"], line["requests"]) for line in result["steps"]]
    assert steps == [(case, n) for case in ("base", "eight adapters") for n in (1, 2)]
    assert all(line["none_ms"] > 0 and line["int8_ms"] > 0 for line in result["steps"])
    assert len(result_tables(result)) == 2
    (folder / "quantization.json").write_text(json.dumps(result, default=str))
    mark = "<!-- figures: quantization -->\n<!-- end of figures -->"
    for page in (markdown(result), PERFORMANCE.fill(mark, folder, "results")):
        assert page.count("| math |") == 2
        assert page.count("| eight adapters |") == 2


def test_what_cannot_be_measured_is_said(folder: Path) -> None:
    settings = _settings(folder)
    with pytest.raises(BenchmarkError, match=r"tiny-random.*checkpoint"):
        _run(settings, ModelSettings(model="tiny-random"))
    with pytest.raises(BenchmarkError, match=r"'float32'.*bfloat16"):
        _run(settings, ModelSettings(model=str(folder / "model"), dtype="float32"))
    empty = QuantizationSettings(data=folder / "data", adapters=folder / "data")
    with pytest.raises(BenchmarkError, match="adapter_config"):
        _run(empty, ModelSettings(model=str(folder / "model")))
