"""Measures all systems in turn, round after round, within a time that is known beforehand.

A system's throughput under a load does not depend on how often the load is repeated, but how
exactly it is known does. So a fast cell repeats its load until it has run for some seconds, and
a slow one, which would take most of the hour, runs it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from adaptermix.bench.cases import Job
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Round
from adaptermix.bench.matrix import Cell, System
from adaptermix.bench.peers.plan import key_of

MOST_WAVES = 8
PRACTICE = "practice"  # the turn that is not counted

JobsOf = Callable[[Cell, str], list[Job]]  # (cell, turn of the run)


def turn(number: int) -> str:
    """Names a round."""
    return f"round {number}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long everything may take."""

    rounds: int
    cell_seconds: float  # that a fast cell runs in a round
    minutes: float  # of all rounds: past it there are fewer of them


@dataclass(frozen=True, slots=True)
class MeasuredPeers:
    """What came out. A cell that failed is in `missing`, by its name and with the reason."""

    rounds: Mapping[Cell, list[Round]]
    missing: Mapping[str, str]
    timing: Mapping[str, float | list[float]]  # seconds of the practice, of a round, of each round


class Measurement:
    """Practice first, which tells how long a round will take; then the rounds.

    `forgiven` names the systems whose failures are noted; any other's end the run.
    """

    def __init__(
        self,
        systems: Mapping[str, System],
        jobs_of: JobsOf,
        forgiven: Collection[str],
        console: Console,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._systems = systems
        self._jobs_of = jobs_of
        self._forgiven = forgiven
        self._console = console
        self._clock = clock
        self._missing: dict[str, str] = {}

    async def run(self, cells: Sequence[Cell], pace: Pace) -> MeasuredPeers:
        """Measure `cells`, each of them one wave: a request a client."""
        started = self._clock()
        expected = await self._practise(cells, pace.cell_seconds)
        practice, ahead = self._clock() - started, sum(expected.values())
        minutes = pace.rounds * ahead / 60
        self._console.print(
            f"practice took {practice:.0f} s; {pace.rounds} rounds of about {ahead:.0f} s: "
            f"{minutes:.1f} minutes",
            highlight=False,
        )
        measured, seconds = await self._rounds(expected, pace)
        timing: dict[str, float | list[float]] = {
            "practice_seconds": practice,
            "expected_round_seconds": ahead,
            "round_seconds": seconds,
        }
        whole = {cell: rounds for cell, rounds in measured.items() if rounds}
        return MeasuredPeers(whole, self._missing, timing)

    async def _practise(self, cells: Sequence[Cell], wanted: float) -> dict[Cell, float]:
        """Every cell once, uncounted: it loads adapters and fills caches of code.

        Gives each cell with the waves that it will run, and the seconds that they will take.
        """
        expected = {}
        for number, cell in enumerate(cells, start=1):
            self._console.print(
                f"practice {number} of {len(cells)}: {key_of(cell)}", highlight=False
            )
            one = await self._once(cell, PRACTICE)
            if one is not None:
                times = max(1, min(MOST_WAVES, int(wanted / one.seconds)))
                expected[replace(cell, requests=times * cell.requests)] = times * one.seconds
        return expected

    async def _rounds(
        self, expected: Mapping[Cell, float], pace: Pace
    ) -> tuple[dict[Cell, list[Round]], list[float]]:
        """All cells in turn, then again: a slow minute of the machine falls on all alike."""
        measured: dict[Cell, list[Round]] = {cell: [] for cell in expected}
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        seconds: list[float] = []
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=pace.rounds * sum(expected.values()))
            for number in range(pace.rounds):
                if seconds and sum(seconds) + max(seconds) > 60 * pace.minutes:
                    self._console.print(f"the time is up after {number} rounds")
                    break
                started = self._clock()
                for cell in [cell for cell in expected if cell in measured]:
                    label = f"round {number + 1} of {pace.rounds}: {key_of(cell)}"
                    progress.update(task, description=label)
                    one = await self._once(cell, turn(number))
                    progress.advance(task, expected[cell])
                    if one is None:
                        del measured[cell]
                    else:
                        measured[cell].append(one)
                seconds.append(self._clock() - started)
        return measured, seconds

    async def _once(self, cell: Cell, name: str) -> Round | None:
        """None where it failed and that is forgiven."""
        jobs = self._jobs_of(cell, name)
        try:
            return await self._systems[cell.system].round(cell.case, cell.load, jobs, lambda: None)
        except BenchmarkError as error:
            if cell.system not in self._forgiven:
                raise
            self._missing[str(key_of(cell))] = str(error)
            self._console.print(
                f"{key_of(cell)} is left out: {error}", style="yellow", markup=False
            )
            return None
