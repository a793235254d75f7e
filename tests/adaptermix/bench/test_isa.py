"""The tiny random model under each instruction set that the machine has."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import LLAMA, OURS
from adaptermix.bench.isa import (
    BEFORE,
    TORCH,
    expectations,
    goals,
    markdown,
    of_peak,
    peak_table,
    scalars_of,
    step_table,
)
from adaptermix.bench.machine import ROOT
from adaptermix.bench.peers.settings import IsaSettings, worker_of
from adaptermix.bench.verdicts import judge
from adaptermix.cli.main import app
from router_engine.model.tiny import save_tiny


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="one of avx2"):
        IsaSettings(isa=("sse9",))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no checkout of AdapterMix"):
        IsaSettings(before=tmp_path)


@pytest.mark.parametrize("folder", ["benchmarks", "adaptermix/bench"])
def test_a_checkout_of_any_commit_runs_its_own_worker(tmp_path: Path, folder: str) -> None:
    """Older commits have it in a package `benchmarks`."""
    worker = tmp_path / folder / "peers" / "workers" / "engine.py"
    worker.parent.mkdir(parents=True)
    worker.touch()
    assert IsaSettings(before=tmp_path).before == tmp_path
    assert worker_of(tmp_path) == f"{folder.replace('/', '.')}.peers.workers.engine"


def test_what_is_missing_is_told_and_the_rest_is_shown() -> None:
    us = {"cpu": 2.0, "reference fp32": 4.0}
    line = {"product": "o 8 -> 8", "rows": 1, "count": 1, "us": us, "flops": 4e6, "peak": 4e12}
    step = {"kind": "decode", "size": 8, "system": OURS, "ms": 2.5, "ms_rounds": [2.0, 3.0]}
    broken = {"isa": "amx", "products": [], "steps": []}
    result = {
        "model": "m",
        "machine": {"processor": "p", "cores": 1},
        "software": {"commit": "c", "date": "2026-01-01"},
        "settings": {"rounds": 5, "rows": [1]},
        "isas": [{"isa": "avx2", "products": [line], "steps": [step]}, broken],
        "goals": [],
        "missing": {"amx": "a worker died:\nfor a reason"},
    }
    page = markdown(result)
    assert f"| avx2 | decode | 8 | {OURS} | 2.50 | 2.0-3.0 |" in page
    assert "| avx2 | o 8 -> 8 | 1 | 2 | 4 | 2000 | 0.50 | 1000 |" in page
    assert "- amx is missing: a worker died: for a reason" in page
    assert expectations(result)[2:] == ["| avx2 | 3200 |", "| amx | - |"]
    assert step_table(result)[2:] == [f"| avx2 | {OURS} | 2.5 |"]
    assert peak_table(result | {"scalars": {of_peak("avx2", 1): [0.5]}})[2:] == [
        "| avx2 | 0.50 |",
        "| amx | - |",
    ]


def _step(kind: str, size: int, system: str, *ms: float) -> dict[str, Any]:
    return {"kind": kind, "size": size, "system": system, "ms": ms[0], "ms_rounds": list(ms)}


def test_targets_are_judged_by_what_was_measured_in_turn() -> None:
    line = {"product": "o", "rows": 64, "count": 2, "us": {"cpu": 2.0}, "flops": 4e6, "peak": 4e12}
    wide = line | {"us": {"cpu": 8.0}, "flops": 16e6, "count": 1}
    narrow = [_step("decode", 8, OURS, 10, 20), _step("decode", 8, LLAMA, 30, 50)]
    pairs = [_step("prefill", 256, OURS, 600, 600), _step("prefill", 256, BEFORE, 594, 582)]
    tiles = [_step("prefill", 256, OURS, 200, 300)]
    isas = [
        {"isa": "avx2", "products": [line, wide], "steps": narrow},
        {"isa": "avx512_bf16", "products": [], "steps": pairs},
        {"isa": "amx", "products": [], "steps": tiles},
    ]
    found = scalars_of(isas)
    assert found["avx2 products 64 of peak"] == [0.5]  # 2 * 1 us + 4 us at the peak, of 12 us
    assert found["avx2 decode 8 over llama.cpp"] == [3.0, 2.5]
    assert found["avx512_bf16 prefill 256 over adaptermix before"] == [0.99, 0.97]
    assert found["amx prefill 256 over avx512_bf16"] == [3.0, 2.0]
    judged = {goal.what: judge(goal, {}, found).status for goal in goals(found)}
    assert judged["avx2: products of 64 rows over the peak in fp32"] == "missed"
    assert judged["avx2: products of 256 rows over the peak in fp32"] == "open"
    assert judged["avx2: decode step against llama.cpp, 8 requests"] == "met"
    assert judged["avx512_bf16: prefill 256, against the commit before"] == "met"
    assert judged["amx: prefill of 256 tokens against avx512_bf16"] == "met"


@pytest.mark.slow
def test_the_command_measures_what_runs_here(tmp_path: Path) -> None:
    from router_engine.backends.cpu.build import build
    from router_engine.backends.cpu.library import supported_isas
    from router_engine.config import KernelConfig

    runnable = supported_isas(build(KernelConfig().cache))
    chosen = ["--model", str(save_tiny(tmp_path / "model")), "--isa", runnable[0]]
    small = ["--rows", "1", "--requests", "2", "--prompt", "16", "--rounds", "1"]
    work = ["--new-tokens", "4", "--threads", "1", "--cache", str(tmp_path / "peers")]
    out = ["--before", str(ROOT), "--out", str(tmp_path / "isa")]
    done = CliRunner().invoke(app, ["bench", "isa", *chosen, *small, *work, *out])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "isa.json").read_text())
    (one,) = result["isas"]
    assert one["isa"] == runnable[0]
    assert len(one["products"]) == 5
    assert all("cpu" in line["us"] for line in one["products"])
    assert all(line["peak"] > 0 for line in one["products"])
    steps = {(step["kind"], step["size"], step["system"]) for step in one["steps"]}
    systems = (OURS, TORCH, BEFORE)
    assert steps == {(*kind, s) for kind in (("decode", 2), ("prefill", 16)) for s in systems}
    assert f"llama.cpp, {runnable[0]}" in result["missing"]
