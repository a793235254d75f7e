"""The GPU benchmark as far as it goes without a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import GOALS
from adaptermix.bench.machine import ROOT
from benchmarks.gpu.checks import ENGINE_TESTS, KERNEL_TESTS, ChecksFailedError, run_tests
from benchmarks.gpu.phases import CardCell, CardDeadline, Phase, run_phases
from benchmarks.gpu.profiling import KernelRun, summary
from benchmarks.gpu.report import write_report
from benchmarks.gpu.run import PHASES, PhaseSettings, measure
from benchmarks.gpu.scalars import scalars
from benchmarks.gpu.settings import SIZES, CardSettings, CardSizes
from benchmarks.gpu.work import CardBatch, Work

HOUR = 3600.0
QUIET = Console(quiet=True)
LLAMA = SIZES["llama-8b"]


def turns(*medians: float, graph: float) -> dict[str, Any]:
    """A cell of steps, whose turns have these medians."""
    return {
        "weight_bytes": 10,
        "turns": [{"seconds": [one, one / 2, 2 * one], "device_seconds": graph} for one in medians],
    }


def test_what_the_targets_are_about() -> None:
    """Medians of a round's steps, one value a round; nothing of what was not measured."""
    found = {
        "steps": {
            "bandwidth": {"bytes_a_second": 4000.0},
            "base, 32 x 128": turns(0.005, 0.010, graph=0.003),
            "mixtures, 32 x 128": turns(0.006, 0.010, graph=0.0045),
            "eight, 32 x 128": turns(0.010, graph=0.006),
            "base, 1 x 32768 and 31 x 128": turns(0.0055, 0.012, graph=0.004),
        },
        "prefill": {"base, 32 x 128": {"tokens": 4096, "seconds": [0.1, 0.2]}},
        "churn": {
            "closed loop": {
                "turns": [{"arrivals": {"median": 0.0105}, "steady": {"median": 0.010}}],
                "compiles": 2,
                "captures": 1,
            }
        },
        "peft": {"eight": {"seconds": [0.2, 0.1, 0.3]}},
    }
    values = scalars(found, LLAMA)
    assert values == {
        "gpu_step_over_floor": pytest.approx([2.0, 4.0]),
        "gpu_graph_over_floor": pytest.approx([1.2, 1.2]),
        "gpu_mixtures_over_base": pytest.approx([1.2, 1.0]),
        "gpu_graph_mixtures_over_base": pytest.approx([1.5, 1.5]),
        "gpu_long_over_short": pytest.approx([1.1, 1.2]),
        "gpu_prefill": pytest.approx([40960.0, 20480.0]),
        "gpu_arrivals_over_steady": pytest.approx([1.05]),
        "gpu_late_builds": [3],
        "gpu_over_peft": pytest.approx([20.0]),
    }
    assert {goal.scalar for goal in GOALS if (goal.scalar or "").startswith("gpu_")} <= set(values)
    assert scalars({}, LLAMA) == {}


def run_of(out: Path, *cells: CardCell, seconds: float = HOUR, **options: Any) -> tuple[int, Any]:
    """Failures of a run of one phase, and its cells on disk."""
    identity = options.pop("identity", {"commit": "one"})
    failures = run_phases(
        [Phase("steps", cells)], out, identity, CardDeadline(seconds), QUIET, **options
    )
    return failures, json.loads((out / "steps.json").read_text())["cells"]


def test_a_cell_is_on_disk_before_the_next_one_begins(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []

    def look() -> dict[str, Any]:
        seen.append(json.loads((tmp_path / "steps.json").read_text())["cells"]["first"])
        return {}

    run_of(tmp_path, CardCell("first", lambda: {"ms": 5}), CardCell("second", look))
    assert seen[0]["status"] == "measured"
    assert seen[0]["found"] == {"ms": 5}


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def cell(name: str) -> CardCell:
        def measure() -> dict[str, Any]:
            calls.append(name)
            return {}

        return CardCell(name, measure)

    run_of(tmp_path, cell("a"))
    run_of(tmp_path, cell("a"), cell("b"))
    assert calls == ["a", "b"]
    run_of(tmp_path, cell("a"), again=True)
    run_of(tmp_path, cell("b"), identity={"commit": "another"})
    assert calls == ["a", "b", "a", "b"]


def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise MemoryError("out of it")

    last = CardCell("last", lambda: {})
    failures, cells = run_of(tmp_path, CardCell("first", fails), last)
    assert failures == 1
    assert cells["first"]["reason"] == "MemoryError: out of it"
    assert cells["last"]["status"] == "measured"
    _, cells = run_of(tmp_path, CardCell("first", fails), last, seconds=0)
    assert cells["first"]["status"] == "failed"  # for want of time its reason is not forgotten
    failures, cells = run_of(tmp_path, CardCell("first", lambda: {}), last)
    assert failures == 0
    assert cells["first"]["status"] == "measured"


def test_what_does_not_fit_the_time_says_so(tmp_path: Path) -> None:
    now = iter(range(100))
    deadline = CardDeadline(4, clock=lambda: next(now))
    cells = [CardCell(name, lambda: {}) for name in "abcdef"]
    assert run_phases([Phase("steps", cells)], tmp_path, {}, deadline, QUIET) == 0
    written = json.loads((tmp_path / "steps.json").read_text())["cells"]
    statuses = [cell["status"] for cell in written.values()]
    assert statuses == sorted(statuses, reverse=True)  # the first are measured
    assert set(statuses) == {"measured", "left out"}
    assert written["f"]["reason"] == "no time was left"


def test_a_phase_takes_its_share_of_the_time() -> None:
    time = [0.0]
    deadline = CardDeadline(10, clock=lambda: time[0])
    half = deadline.share(0.5)
    time[0] = 5.0
    assert half.has_passed
    assert not deadline.has_passed
    time[0] = 8.0
    rest = deadline.share(0.5)
    time[0] = 10.0
    assert rest.has_passed


def test_rows_own_their_prompts() -> None:
    """No first block is another row's, and equal seeds have equal prompts."""
    work = Work(512, {}, own_tokens=100)
    batch = CardBatch(32, 16, first=64)
    prompts = [each.prompt_token_ids for each in work.turn("base", batch, 1).requests]
    assert [len(prompt) for prompt in prompts] == [64] + 31 * [16]
    assert len({prompt[:16] for prompt in prompts}) == 32
    again = [each.prompt_token_ids for each in work.turn("base", batch, 1).requests]
    other = [each.prompt_token_ids for each in work.turn("base", batch, 1, seed=1).requests]
    assert prompts == again
    assert not set(prompts) & set(other)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_prompts_that_are_timed_run_under_their_own_case(sizes: CardSizes) -> None:
    work = Work(512, {}, sizes.own_tokens)
    assert not any(work.shares("mixtures", CardBatch(*size)) for size in sizes.prefills)
    assert work.shares("mixtures", CardBatch(sizes.requests[1], sizes.kv_tokens))


@pytest.mark.parametrize("requests", [1, 32, 256])
def test_distinct_adapters_are_all_in_one_step(requests: int) -> None:
    digests = [f"{number}" for number in range(128)]
    work = Work(512, {"distinct": digests}, own_tokens=1 << 16)
    turn = work.turn("distinct", CardBatch(requests, 16), 1)
    used = {digest for request in turn.requests for digest in request.adapters}
    assert len(used) == min(128, 4 * requests)


def test_kernels_that_overlap_count_once() -> None:
    found = summary(
        [
            KernelRun("a", 0, 10),
            KernelRun("b", 5, 8),
            KernelRun("a", 20, 25),
            KernelRun("b", 24, 30),
        ]
    )
    assert (found["span"], found["busy"], found["gaps"], found["longest_gap"]) == (30, 20, 10, 10)
    assert found["kernels"] == [
        {"name": "a", "launches": 2, "us": 15},
        {"name": "b", "launches": 2, "us": 9},
    ]
    assert summary([])["launches"] == 0


def test_tests_that_fail_are_told(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "def test_good(): pass\ndef test_bad(): assert 'a' == 'b'\n"
    )
    assert "1 passed" in run_tests(tmp_path, ("-k", "good"), HOUR)["said"]
    with pytest.raises(ChecksFailedError, match="1 failed, 1 passed"):
        run_tests(tmp_path, (), HOUR)
    with pytest.raises(ChecksFailedError, match="not done in 0 s"):
        run_tests(tmp_path, (), 0)


def test_the_tests_that_a_gpu_runs_are_there() -> None:
    for test in (*KERNEL_TESTS, *ENGINE_TESTS):
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_settings_that_are_no_good() -> None:
    with pytest.raises(BenchmarkError, match="shape is '7b'"):
        CardSettings("7b")
    with pytest.raises(BenchmarkError, match="targets is 'some'"):
        CardSettings(targets="some")
    with pytest.raises(BenchmarkError, match="steps is 0"):
        CardSettings(steps=0)
    with pytest.raises(BenchmarkError, match="prefil"):
        PhaseSettings(Path("out"), phases=("prefil",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_run_of_a_tiny_shape(tmp_path: Path) -> None:
    """Every phase once; nothing the second time, not even a checkpoint."""
    out = tmp_path / "out"
    settings = CardSettings("tiny", "reference", steps=2, rounds=1)
    assert measure(settings, PhaseSettings(out, minutes=60), QUIET) == 0
    files = {name: json.loads((out / f"{name}.json").read_text()) for name in PHASES}
    left_out = {
        f"{name}, {cell}": entry["reason"]
        for name, file in files.items()
        for cell, entry in file["cells"].items()
        if entry["status"] != "measured"
    }
    assert left_out.pop("tests, kernels") == left_out.pop("tests, engine") == "no GPU"
    assert len(left_out) == 5
    assert all(cell.endswith(", 2 x 400") and "holds 640" in left_out[cell] for cell in left_out)
    check_steps(files["steps"]["cells"])
    loop = files["churn"]["cells"]["closed loop"]["found"]
    assert loop["arrivals"] == 3
    assert loop["loads"] >= 3
    assert loop["evictions"] >= 1
    assert files["profile"]["cells"]["mixtures"]["found"]["launches"] > 0

    kept = tmp_path / "kept"
    assert measure(settings, PhaseSettings(out, folder=kept), QUIET) == 0
    assert list(kept.iterdir()) == []
    assert files == {name: json.loads((out / f"{name}.json").read_text()) for name in PHASES}
    check_pages(out)


def check_steps(cells: Mapping[str, Any]) -> None:
    """Each row had its own blocks, and of its prompt no more than one block was computed."""
    found = [cell["found"] for cell in cells.values() if "turns" in cell.get("found", {})]
    assert len(found) == 18
    for cell in found:
        rows, context, first = cell["requests"], cell["context"], cell["first"]
        contexts = [first or context, *[context] * (rows - 1)]
        (turn,) = cell["turns"]
        assert len(turn["seconds"]) == 2
        assert turn["blocks"] >= sum(length // 16 for length in contexts)
        assert turn["prompt_tokens"] <= 16 * rows
    assert cells["mixtures, 1 x 400"]["found"]["fill_seconds"] is None  # the base's are taken


def check_pages(out: Path) -> None:
    """The page of the files, without a GPU and as with one."""
    page = write_report(out)
    goals = sum((goal.scalar or "").startswith("gpu_") for goal in GOALS)
    assert page.count("| not run on a GPU |") == goals
    assert "* steps, base, 2 x 400: left out: " in page
    for name in PHASES:
        path = out / f"{name}.json"
        document = json.loads(path.read_text())
        document["identity"]["machine"]["gpu"] = "NVIDIA H200"
        path.write_text(json.dumps(document))
    judged = write_report(out)
    assert "not run on a GPU" not in judged
    assert judged.count("| yes |") + judged.count("| **no** |") == goals
    (out / "peft.json").unlink()
    assert "* not run: peft" in write_report(out)
    result = json.loads((out / "gpu.json").read_text())
    assert "gpu_over_peft" not in result["scalars"]
    assert result["machine"]["gpu"] == "NVIDIA H200"
