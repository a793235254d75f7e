"""The tiny random model under each instruction set that the machine has."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.errors import BenchmarkError
from benchmarks.goals import OURS
from benchmarks.isa.report import markdown
from benchmarks.isa.settings import IsaSettings
from router_engine.model.tiny import save_tiny
from server.cli.main import app


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="one of avx2"):
        IsaSettings(isa=("sse9",))


def test_what_is_missing_is_told_and_the_rest_is_shown() -> None:
    us = {"cpu": 2.0, "reference fp32": 4.0}
    line = {"product": "o 8 -> 8", "rows": 1, "us": us, "flops": 4e6}
    step = {"kind": "decode", "requests": 8, "system": OURS, "ms": 2.5, "ms_rounds": [2.0, 3.0]}
    broken = {"isa": "amx", "products": [], "steps": []}
    result = {
        "model": "m",
        "machine": {"processor": "p", "cores": 1},
        "software": {"commit": "c", "date": "2026-01-01"},
        "settings": {"rounds": 5},
        "isas": [{"isa": "avx2", "flops": 4e12, "products": [line], "steps": [step]}, broken],
        "missing": {"amx": "a worker died:\nfor a reason"},
    }
    page = markdown(result)
    assert f"| avx2 | decode | 8 | {OURS} | 2.50 | 2.0-3.0 |" in page
    assert "| avx2 | o 8 -> 8 | 1 | 2 | 4 | 2000 | 0.50 | 1000 |" in page
    assert "- amx is missing: a worker died: for a reason" in page


@pytest.mark.slow
def test_the_command_measures_what_runs_here(tmp_path: Path) -> None:
    from router_engine.config import KernelConfig
    from router_engine.kernels.cpu.build import build
    from router_engine.kernels.cpu.library import supported_isas

    runnable = supported_isas(build(KernelConfig().cache))
    chosen = ["--model", str(save_tiny(tmp_path / "model")), "--isa", runnable[0]]
    small = ["--rows", "1", "--requests", "2", "--prompt", "16", "--rounds", "1"]
    work = ["--new-tokens", "4", "--threads", "1", "--cache", str(tmp_path / "peers")]
    out = ["--out", str(tmp_path / "isa")]
    done = CliRunner().invoke(app, ["bench", "isa", *chosen, *small, *work, *out])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "isa.json").read_text())
    (one,) = result["isas"]
    assert one["isa"] == runnable[0]
    assert len(one["products"]) == 5
    assert all("cpu" in line["us"] for line in one["products"])
    assert {(s["kind"], s["system"]) for s in one["steps"]} == {("decode", OURS), ("prefill", OURS)}
    assert f"llama.cpp, {runnable[0]}" in result["missing"]
