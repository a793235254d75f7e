"""Measures many cells in turn, round after round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptermix.bench.cases import Job
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round, Send, drive
from adaptermix.bench.turns import FAILURES

WARMUP_JOBS = 2
WARM_UP = "warm-up"


class System(Protocol):
    """What can be put under load."""

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One case under one load on one system, with jobs of one suite."""

    system: str
    case: str
    load: Load
    requests: int
    suite: str = ""


Enter = Callable[[str, Sequence[Job]], AbstractAsyncContextManager[object]]
JobsOf = Callable[[Cell, int, str], list[Job]]  # (cell, count, part of the run)


def _as_it_is(case: str, jobs: Sequence[Job]) -> AbstractAsyncContextManager[object]:
    return nullcontext()


class Driven:
    """A system that takes one job at a time; `enter` surrounds a round of a case."""

    def __init__(self, send: Send, enter: Enter = _as_it_is) -> None:
        self._send = send
        self._enter = enter

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """See `System`."""
        async with self._enter(case, jobs):
            return await drive(self._send, load, jobs, len(jobs), on_done)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out. A cell that failed has no rounds: `missing` says which, and why."""

    rounds: Mapping[Cell, list[Round]]
    missing: Mapping[str, str]


async def measure(
    systems: Mapping[str, System],
    cells: Sequence[Cell],
    rounds: int,
    jobs_of: JobsOf,
    console: Console,
) -> Measured:
    """All cells in turn, then again: a slow minute of the machine then falls on all alike.

    Before, every case of every system runs once, uncounted: it loads adapters and fills caches of
    code. A cell that fails has no further turns, and the others go on.
    Raises BenchmarkError, with the first reason, where all failed.
    """
    measured: dict[Cell, list[Round]] = {cell: [] for cell in cells}
    missing: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=rounds * sum(cell.requests for cell in cells))

        async def once(cell: Cell, load: Load, count: int, part: str) -> Round | None:
            label = f"{cell.system}, {cell.case}, {load.title}"
            progress.update(task, description=f"{part}: {label}")
            jobs, counted = jobs_of(cell, count, part), 0 if part == WARM_UP else 1
            try:
                return await systems[cell.system].round(
                    cell.case, load, jobs, lambda: progress.advance(task, counted)
                )
            except FAILURES as error:
                missing[label] = str(error)
                console.print(f"{label} is left out: {error}", style="yellow", markup=False)
                return None

        for case, cell in {_case(cell): cell for cell in cells}.items():
            if await once(cell, Load(clients=WARMUP_JOBS), WARMUP_JOBS, WARM_UP) is None:
                measured = {one: [] for one in measured if _case(one) != case}
        for number in range(rounds):
            for cell in list(measured):
                one = await once(cell, cell.load, cell.requests, f"round {number}")
                if one is None:
                    del measured[cell]
                else:
                    measured[cell].append(one)
    if not measured:
        raise BenchmarkError(next(iter(missing.values()), "there is nothing to measure"))
    return Measured(measured, missing)


def _case(cell: Cell) -> tuple[str, str, str]:
    return cell.system, cell.suite, cell.case
