"""A run: the phases by name, in the order of their importance, and what is left of them on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from adaptermix.bench.settings import about, at_least
from benchmarks.gpu.checks import check_cells
from benchmarks.gpu.churn import churn_cells
from benchmarks.gpu.memory import memory_cells
from benchmarks.gpu.peft import peft_cells
from benchmarks.gpu.phases import CardCell, CardDeadline, Phase, run_phases
from benchmarks.gpu.prefill import prefill_cells
from benchmarks.gpu.profiling import profile_cells
from benchmarks.gpu.settings import CardSettings, require
from benchmarks.gpu.site import Site
from benchmarks.gpu.steps import step_cells

# Cells, and the share of the run's time that they may take at most: the many sizes of a step must
# leave some to the others. Those that take seconds come before those that start another engine.
PHASES: Mapping[str, tuple[Callable[[Site], list[CardCell]], float]] = MappingProxyType(
    {
        "tests": (check_cells, 0.2),
        "steps": (step_cells, 0.5),
        "prefill": (prefill_cells, 0.2),
        "profile": (profile_cells, 0.2),
        "churn": (churn_cells, 0.3),
        "memory": (memory_cells, 0.2),
        "peft": (peft_cells, 1.0),
    }
)


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    """Which phases, for how long, and where. Raises BenchmarkError for a phase that is none."""

    out: Path = field(metadata=about("Folder of the phases' files, gpu.json and gpu.md."))
    phases: tuple[str, ...] = field(
        default=tuple(PHASES), metadata=about("A phase to measure; repeatable; all when left out.")
    )
    minutes: float = field(default=9.0, metadata=about("After these no cell is begun."))
    again: bool = field(default=False, metadata=about("Measure what is there already, too."))
    folder: Path | None = field(
        default=None,
        metadata=about("Where the checkpoint lies and stays; in memory it is read fastest."),
    )

    def __post_init__(self) -> None:
        at_least("minutes", self.minutes, 0)
        for phase in self.phases:
            require("phases", phase, PHASES)


def measure(settings: CardSettings, run: PhaseSettings, console: Console) -> int:
    """Measure what `run.out` does not hold yet; the number of cells that failed."""
    deadline = CardDeadline(60 * run.minutes)
    with Site(settings, run.folder) as site:
        phases = [
            Phase(name, make(site), share)
            for name, (make, share) in PHASES.items()
            if name in run.phases
        ]
        return run_phases(phases, run.out, settings.identity(), deadline, console, again=run.again)
