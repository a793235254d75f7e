"""Phases of a run: cells in the order of their importance, each written the moment it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.records import PhaseFile


class LeftOutError(Exception):
    """A cell that cannot be measured here, which is nobody's failure."""


@dataclass(frozen=True, slots=True)
class CardCell:
    """One measurement. `measure` returns what JSON can hold; raises LeftOutError, or anything."""

    name: str
    measure: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Phase:
    """Cells that belong together. share: of the run's time, that they may take at most."""

    name: str
    cells: Sequence[CardCell]
    share: float = 1.0


class CardDeadline:
    """So many seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds

    @property
    def has_passed(self) -> bool:
        return self._clock() >= self._end

    def share(self, share: float) -> CardDeadline:
        """A part of it, from now on, and no later than it ends itself."""
        left = max(0.0, self._end - self._clock())
        return CardDeadline(min(left, share * self._seconds), self._clock)


def run_phases(
    phases: Iterable[Phase],
    out: Path,
    identity: Mapping[str, Any],
    deadline: CardDeadline,
    console: Console,
    *,
    again: bool = False,
) -> int:
    """Measure what is not there yet; the number of cells that failed.

    again: what is there, too. A cell that fails, for want of memory say, leaves the others alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures = 0
    for phase in phases:
        file = PhaseFile(out, phase.name, identity)
        if again:
            file.forget()
        failures += _run(phase, file, deadline.share(phase.share), console)
    return failures


def _run(phase: Phase, file: PhaseFile, deadline: CardDeadline, console: Console) -> int:
    failures = 0
    for cell in phase.cells:
        if file.has(cell.name):
            continue
        started = time.monotonic()
        try:
            if deadline.has_passed:
                raise LeftOutError("no time was left")
            found = cell.measure()
        except LeftOutError as reason:
            file.missed(cell.name, "left out", str(reason))
            said = f"left out: {reason}"
        except Exception as error:  # whatever it is: the next cell may fare better
            failures += 1
            reason_text = f"{type(error).__name__}: {error}"
            file.missed(cell.name, "failed", reason_text, time.monotonic() - started)
            said = f"failed: {reason_text.splitlines()[0]}"
        else:
            seconds = time.monotonic() - started
            file.measured(cell.name, found, seconds)
            said = f"{seconds:.1f} s"
        console.print(f"{phase.name}, {cell.name}: {said}", markup=False, soft_wrap=True)
    return failures
