"""The figures of the performance page come from files, and only from there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adaptermix.bench.goals import GOALS
from adaptermix.bench.machine import ROOT
from adaptermix.bench.verdicts import judge
from scripts.figures import PERFORMANCE

PAGE = ROOT / "docs" / "performance.md"
END = "<!-- end of figures -->"
WHERE = {
    "model": "tiny",
    "machine": {"processor": "Example", "cores": 2, "gpu": None},
    "software": {"commit": "0123456789abcdef", "date": "2026-01-01T00:00:00+00:00"},
    "serving": {"dtype": "bfloat16", "kernels": "cpu", "threads": 2},
}
PRODUCT = {
    "product": "o 8 -> 8",
    "rows": 4,
    "count": 2,
    "us": {"cpu": 2.0, "reference": 5.0},
    "flops": 512_000,
    "floor_us": 1.0,
}
KERNELS = {"bytes_per_second": 15e9, "products": [PRODUCT], "others": []}
SECONDS = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
CELL = {
    "title": "base model",
    "load": "8",
    "output_tokens_per_second": 123.4,
    "output_tokens_per_second_range": [120, 130],
    "ttft_seconds": SECONDS,
    "inter_token_seconds": SECONDS,
    "e2e_seconds": SECONDS,
    "decode_step": {"step_ms": 30.25, "model_ms": 29.0, "around_ms": 1.25},
}


def page(name: str) -> str:
    return f"above\n<!-- figures: {name} -->\nold\n{END}\nbelow\n"


def put(folder: Path, name: str, result: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps({**WHERE, **result}))


def test_what_is_not_measured_says_how_to_measure_it(tmp_path: Path) -> None:
    for name, (_, command, _) in PERFORMANCE.writers.items():
        text = PERFORMANCE.fill(page(name), tmp_path, "results")
        assert f"Not measured yet: `{command}`." in text
        assert "old" not in text
        assert text.startswith("above\n")
        assert text.endswith(f"{END}\nbelow\n")


def test_figures_are_written_with_their_origin(tmp_path: Path) -> None:
    put(tmp_path, "kernels", KERNELS)
    put(tmp_path, "engine", {"cells": [CELL], "points": []})
    put(tmp_path, "serve", {"cells": [CELL]})
    put(tmp_path, "peers", {"goals": [asdict(judge(goal, {}, {})) for goal in GOALS]})
    texts = {
        name: PERFORMANCE.fill(page(name), tmp_path, "results") for name in PERFORMANCE.writers
    }
    assert "15.0 GB/s" in texts["machine"]
    assert "256 GFLOP/s" in texts["machine"]
    assert "| o 8 -> 8 | 4 | 1 | 2 | 5 | 2.00 |" in texts["products"]
    assert "| base model | 8 | 30.25 | 29.00 | 1.25 | 123.4 |" in texts["phases"]
    assert "| base model | 8 | 123.4 | 120.0-130.0 | 100 | 200 | 300 |" in texts["serving"]
    assert texts["targets"].count("| open") == len(GOALS)
    for name in ("machine", "phases", "serving", "targets"):
        assert "0123456789" in texts[name]
    assert PERFORMANCE.fill(texts["phases"], tmp_path, "results") == texts["phases"]


def test_a_picture_is_shown_where_there_is_one(tmp_path: Path) -> None:
    put(tmp_path, "kernels", KERNELS)
    assert "](" not in PERFORMANCE.fill(page("products"), tmp_path, "results")
    (tmp_path / "kernels.png").write_bytes(b"")
    assert "](results/kernels.png)" in PERFORMANCE.fill(page("products"), tmp_path, "results")


def test_an_unknown_mark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="dreams"):
        PERFORMANCE.fill(page("dreams"), tmp_path, "results")


def test_the_page_asks_for_every_figure() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- figures: {name} -->" in text for name in PERFORMANCE.writers)
