"""Parts that fail are left out with the reason; a run keeps what it has, whatever it measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.offline import Offline, Step, Window
from adaptermix.bench.rounds import Turns, attempt
from adaptermix.bench.workload import Job
from adaptermix.cli.main import app
from router_engine.errors import EngineError
from router_engine.request import EngineRequest

QUIET = Console(quiet=True)
REASON = "could not create a primitive"  # of a library, on a processor that lacks what it asks for
SMALL = ("--requests", "2", "--adapters", "1", "--context", "8", "--steps", "1")
TINY = ("--model", "tiny-random", "--kernels", "reference", "--threads", "1")


def test_all_take_turns_and_each_goes_first() -> None:
    turns = Turns[str, int](["a", "b", "c"], str, QUIET)
    order = "".join(part for _, part in turns.rounds(3, "turns"))
    assert order == "abcbcacab"


@pytest.mark.parametrize("kind", [BenchmarkError, EngineError, RuntimeError])
def test_a_part_that_fails_has_no_further_turns(kind: type[Exception]) -> None:
    turns = Turns[str, int](["good", "bad"], str.upper, QUIET)
    for number, part in turns.rounds(3, "turns"):
        with turns.turn(part) as values:
            if part == "bad" and number == 1:
                raise kind(REASON)
            values.append(number)
    assert turns.values == {"good": [0, 1, 2]}
    assert turns.missing == {"BAD": REASON}
    turns.require_some()


def test_where_all_fail_the_first_reason_is_the_error() -> None:
    turns = Turns[str, int](["a", "b"], str, QUIET)
    for _, part in turns.rounds(1, "turns"):
        with turns.turn(part):
            raise BenchmarkError(f"{part} {REASON}")
    with pytest.raises(BenchmarkError, match=f"a {REASON}"):
        turns.require_some()


def test_a_fault_of_the_program_is_not_hidden() -> None:
    with pytest.raises(KeyError), attempt({}, "x", QUIET):
        raise KeyError("x")


def refuse_steps(monkeypatch: pytest.MonkeyPatch, is_refused: Callable[[Job], bool]) -> None:
    whole = Offline.decode_steps

    def decode_steps(self: Offline, jobs: Sequence[Job], count: int) -> list[Step]:
        if is_refused(jobs[0]):
            raise RuntimeError(REASON)
        return whole(self, jobs, count)

    monkeypatch.setattr(Offline, "decode_steps", decode_steps)


@pytest.mark.parametrize(
    ("command", "options", "part"),
    [
        ("engine", ("--curve", "requests", "--largest", "1", "--steps", "1"), "eight adapters"),
        ("experts", SMALL, "soft"),
        ("experts", SMALL, "lora"),  # which the others are compared with
    ],
)
def test_a_command_writes_what_it_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: Sequence[str],
    part: str,
) -> None:
    def is_refused(job: Job) -> bool:
        names = job.mixture.adapters
        return bool(names) and (command == "engine" or names[0].startswith(part))

    refuse_steps(monkeypatch, is_refused)
    out = tmp_path / "result"
    arguments = ["bench", command, *options, *TINY, "--rounds", "1", "--out", str(out)]
    done = CliRunner().invoke(app, arguments, env={"TERM": "dumb"})
    assert done.exit_code == 1
    assert "not measured" in done.output
    result = json.loads(out.with_suffix(".json").read_text())
    assert list(result["missing"].values()) == [REASON]
    assert part in next(iter(result["missing"]))
    measured = [one["case"] for one in result.get("points") or result["cells"]]
    assert "base" in measured
    assert part not in measured
    assert f"is missing: {REASON}" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_routers_that_fail_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Offline.window

    def window(
        self: Offline,
        requests: Sequence[EngineRequest],
        steps: int,
        most_seconds: float,
        within: AbstractContextManager[object] | None = None,
    ) -> Window:
        if requests[0].layer_routing is not None:
            raise RuntimeError(REASON)
        return whole(self, requests, steps, most_seconds, within)

    monkeypatch.setattr(Offline, "window", window)
    out = tmp_path / "routing"
    sizes = ["--requests", "2", "--candidates", "5", "--steps", "2", "--rounds", "1"]
    arguments = ["bench", "routing", *sizes, *TINY, "--out", str(out)]
    done = CliRunner().invoke(app, arguments, env={"TERM": "dumb"})
    assert done.exit_code == 1
    result = json.loads(out.with_suffix(".json").read_text())
    assert REASON in result["missing"].values()
    assert "contexts" not in result  # which are compared on data alone
    assert "arrow" not in {line["case"] for line in result["steps"]}
    assert {"hidden_mean", "similarity"} <= {line["case"] for line in result["steps"]}
    assert f"is missing: {REASON}" in out.with_suffix(".md").read_text()
