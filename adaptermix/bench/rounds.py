"""Parts and cells measured in turn, round after round; what fails is left out, the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round, Send, drive
from adaptermix.bench.workload import Job
from router_engine.errors import EngineError

# What ends a part of a run and not the run. Torch raises RuntimeError for what a machine can't do.
FAILURES = (EngineError, RuntimeError)
WARMUP_JOBS = 2
WARM_UP = "warm-up"
PRACTICE = "practice"  # the round that is not counted
MOST_WAVES = 8

Part = TypeVar("Part", bound=Hashable)
Value = TypeVar("Value")


@contextmanager
def attempt(missing: MutableMapping[str, str], name: str, console: Console) -> Iterator[None]:
    """A part of a run called `name`: where it fails, `missing` says why, and all goes on."""
    try:
        yield
    except FAILURES as error:
        missing[name] = str(error)
        console.print(f"{name} is left out: {error}", style="yellow", markup=False)


class Turns(Generic[Part, Value]):
    """The values of each part. One that fails loses those it had, and has no further turns."""

    def __init__(
        self, parts: Sequence[Part], name_of: Callable[[Part], str], console: Console
    ) -> None:
        self.values: dict[Part, list[Value]] = {part: [] for part in parts}
        self.missing: dict[str, str] = {}
        self._name_of = name_of
        self._console = console

    def rounds(self, count: int, title: str) -> Iterator[tuple[int, Part]]:
        """(round, part), all parts in each round: a slow minute of the machine falls on all alike.

        Whoever goes first finds the caches cold, so each does in turn.
        """
        parts = list(self.values)
        turns = [
            (number, parts[(number + index) % len(parts)])
            for number in range(count)
            for index in range(len(parts))
        ]
        for number, part in track(turns, title, console=self._console):
            if part in self.values:
                yield number, part

    @contextmanager
    def turn(self, part: Part) -> Iterator[list[Value]]:
        """A turn of a part, which adds to its values."""
        name = self._name_of(part)
        with attempt(self.missing, name, self._console):
            yield self.values[part]
        if name in self.missing:
            del self.values[part]

    def require_some(self) -> None:
        """Raises BenchmarkError, with the first reason, where all parts failed."""
        _require(self.values, self.missing)


class System(Protocol):
    """Anything that can be put under load."""

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """All jobs of one case under the load; `on_done` after each. Raises BenchmarkError."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One case under one load on one system, with jobs of one suite."""

    system: str  # its name
    case: str
    load: Load
    requests: int  # of a round
    suite: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.system}, {self.case}, {self.load.title}"


Enter = Callable[[str, Sequence[Job]], AbstractAsyncContextManager[object]]
JobsOf = Callable[[Cell, str], list[Job]]  # (cell, part of the run) -> as many as its requests


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
    """The rounds of each cell. A cell that failed has none: `missing` says which, and why."""

    rounds: Mapping[Cell, list[Round]]
    missing: Mapping[str, str]
    # Seconds of the practice, of a round as expected, of each round; empty where none are measured.
    timing: Mapping[str, float | list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """The time that a measurement may take."""

    rounds: int
    cell_seconds: float  # that a fast cell runs in a round
    minutes: float  # of all rounds: past it there are fewer of them


class _CellRounds:
    """Rounds of cells. One that fails is named in `missing` and has no further turns."""

    def __init__(
        self,
        systems: Mapping[str, System],
        jobs_of: JobsOf,
        name_of: Callable[[Cell], str],
        console: Console,
    ) -> None:
        self.missing: dict[str, str] = {}
        self._systems = systems
        self._jobs_of = jobs_of
        self._name_of = name_of
        self._console = console

    async def once(self, cell: Cell, part: str, on_done: OnDone = lambda: None) -> Round | None:
        """One round of one cell; None where it failed."""
        jobs, system = self._jobs_of(cell, part), self._systems[cell.system]
        done: list[Round] = []
        with attempt(self.missing, self._name_of(cell), self._console):
            done.append(await system.round(cell.case, cell.load, jobs, on_done))
        return done[0] if done else None

    async def all(
        self, measured: dict[Cell, list[Round]], part: str, begin: Callable[[Cell], OnDone]
    ) -> None:
        """A round of each cell, added to those it has; `begin` is told of each before."""
        for cell in list(measured):
            done = await self.once(cell, part, begin(cell))
            if done is None:
                del measured[cell]
            else:
                measured[cell].append(done)


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
    runs = _CellRounds(systems, jobs_of, lambda cell: cell.title, console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=rounds * sum(cell.requests for cell in cells))

        def begin(cell: Cell) -> OnDone:
            progress.update(task, description=f"{part}: {cell.title}")
            return lambda: progress.advance(task, 0 if part == WARM_UP else 1)

        part = WARM_UP
        for case, cell in {_case(cell): cell for cell in cells}.items():
            few = replace(cell, load=Load(clients=WARMUP_JOBS), requests=WARMUP_JOBS)
            if await runs.once(few, part, begin(few)) is None:
                measured = {other: [] for other in measured if _case(other) != case}
        for number in range(rounds):
            part = round_title(number)
            await runs.all(measured, part, begin)
    _require(measured, runs.missing)
    return Measured(measured, runs.missing)


async def measure_at_pace(
    systems: Mapping[str, System],
    cells: Sequence[Cell],
    pace: Pace,
    jobs_of: JobsOf,
    name_of: Callable[[Cell], str],
    console: Console,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """All cells in turn, round after round, within a time that is known beforehand.

    Each of `cells` is one wave, a request a client. A practice comes first, which tells how long a
    round will take. A system's throughput under a load does not depend on how often the load is
    repeated, but how exactly it is known does: so a fast cell repeats its wave until it has run for
    some seconds, and a slow one, which would take most of the hour, runs it once.
    """
    runs = _CellRounds(systems, jobs_of, name_of, console)
    started = clock()
    expected: dict[Cell, float] = {}  # with the waves that it will run: their seconds
    for number, cell in enumerate(cells, start=1):
        console.print(f"practice {number} of {len(cells)}: {name_of(cell)}", highlight=False)
        done = await runs.once(cell, PRACTICE)
        if done is not None:
            times = max(1, min(MOST_WAVES, int(pace.cell_seconds / done.seconds)))
            expected[replace(cell, requests=times * cell.requests)] = times * done.seconds
    practice, ahead = clock() - started, sum(expected.values())
    minutes = pace.rounds * ahead / 60
    console.print(
        f"practice took {practice:.0f} s; {pace.rounds} rounds of about {ahead:.0f} s: "
        f"{minutes:.1f} minutes",
        highlight=False,
    )
    measured: dict[Cell, list[Round]] = {cell: [] for cell in expected}
    seconds: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=pace.rounds * ahead)

        def begin(cell: Cell) -> OnDone:
            label = f"round {len(seconds) + 1} of {pace.rounds}: {name_of(cell)}"
            progress.update(task, description=label)
            return lambda: progress.advance(task, expected[cell] / cell.requests)

        for number in range(pace.rounds):
            if seconds and sum(seconds) + max(seconds) > 60 * pace.minutes:
                console.print(f"the time is up after {number} rounds")
                break
            started = clock()
            await runs.all(measured, round_title(number), begin)
            seconds.append(clock() - started)
    timing: dict[str, float | list[float]] = {
        "practice_seconds": practice,
        "expected_round_seconds": ahead,
        "round_seconds": seconds,
    }
    whole = {cell: rounds for cell, rounds in measured.items() if rounds}
    return Measured(whole, runs.missing, timing)


def round_title(number: int) -> str:
    """A round's name, by which its jobs are chosen."""
    return f"round {number}"


def _case(cell: Cell) -> tuple[str, str, str]:
    return cell.system, cell.suite, cell.case


def _require(values: Mapping[Part, object], missing: Mapping[str, str]) -> None:
    if not values:
        raise BenchmarkError(next(iter(missing.values()), "there is nothing to measure"))
