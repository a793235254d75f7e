"""Measures many cells in turn, round after round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.cases import Job
from benchmarks.load import Load, OnDone, Round, Send, drive

WARMUP_JOBS = 2


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


async def measure(
    systems: Mapping[str, System],
    cells: Sequence[Cell],
    rounds: int,
    jobs_of: JobsOf,
    console: Console,
) -> dict[Cell, list[Round]]:
    """All cells in turn, then again: a slow minute of the machine then falls on all alike.

    Before, every case of every system runs once, uncounted: it loads adapters and fills caches of
    code.
    """
    measured: dict[Cell, list[Round]] = {cell: [] for cell in cells}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        total = rounds * sum(cell.requests for cell in cells)
        task = progress.add_task("warming up", total=total)
        firsts = {(cell.system, cell.suite, cell.case): cell for cell in cells}
        for cell in firsts.values():
            jobs = jobs_of(cell, WARMUP_JOBS, "warm-up")
            warm = Load(clients=WARMUP_JOBS)
            await systems[cell.system].round(cell.case, warm, jobs, lambda: None)
        for number in range(rounds):
            for cell in cells:
                label = f"round {number + 1}: {cell.system}, {cell.case}, {cell.load.title}"
                progress.update(task, description=label)
                jobs = jobs_of(cell, cell.requests, f"round {number}")
                one = await systems[cell.system].round(
                    cell.case, cell.load, jobs, lambda: progress.advance(task)
                )
                measured[cell].append(one)
    return measured
