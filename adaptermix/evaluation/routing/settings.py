"""What an evaluation is asked to do. Each field with a help text is an option of the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Which cells are measured, on how many rows, and where the results go."""

    data: Path = field(metadata=about("Folder with SET/test.jsonl.gz, and train beside it."))
    suite: Path | None = field(
        default=None, metadata=about("Tasks and routings, .toml or .json; the project's own else.")
    )
    adapters: Path = field(
        default=Path("examples") / "adapters",
        metadata=about("Folder of adapter folders, which the evaluation's own server publishes."),
    )
    task: tuple[str, ...] = field(
        default=(), metadata=about("A task of the suite; repeatable; all when left out.")
    )
    routing: tuple[str, ...] = field(
        default=(), metadata=about("A routing of the suite; repeatable; all when left out.")
    )
    rows: int = field(default=300, metadata=about("Test rows of a task for the likelihoods."))
    answer_rows: int = field(default=100, metadata=about("Of those, rows to answer; 0: none."))
    mixed_rows: int = field(default=50, metadata=about("Prompts that need two skills, a task."))
    concurrency: int = field(default=16, metadata=about("Requests in flight."))
    speed_rounds: int = field(
        default=3, metadata=about("Times that each routing's tokens/s are measured; 0: none.")
    )
    seed: int = field(default=0, metadata=about("Chooses the rows."))
    tune: bool = field(
        default=False,
        metadata=about("Choose the routers' parameters on train rows, write --tuned, and end."),
    )
    tune_rows: int = field(default=40, metadata=about("Train rows of a task to tune on."))
    tuned: Path = field(
        default=OUT / "tuned.json",
        metadata=about("The chosen parameters; each router's defaults where there is no file."),
    )
    restart: bool = field(
        default=False, metadata=about("Forget what an interrupted run has measured.")
    )
    out: Path = field(
        default=OUT / "evaluation", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        for name in ("rows", "mixed_rows", "concurrency", "tune_rows"):
            _at_least(name, getattr(self, name), 1)
        for name in ("answer_rows", "speed_rounds"):
            _at_least(name, getattr(self, name), 0)

        if self.tuned.suffix != ".json":
            raise BenchmarkError(f"tuned is {self.tuned}; it must be a .json file")
        if self.tune and self.routing:
            raise BenchmarkError("routing does nothing with tune, which takes the suite's grids")

    @property
    def journal(self) -> Path:
        """Every answer so far, beside the result: what an interrupted run goes on from."""
        return self.out.with_name(f"{self.out.name}.jsonl")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BenchmarkError(f"{name} is {value}; it must be at least {least}")
