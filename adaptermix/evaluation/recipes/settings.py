"""What an experiment is asked to do. Each field with a help text is an option of its command."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about
from adaptermix.training.settings import DTypeName

JOURNAL = OUT / "experiments.jsonl"
PAGES = Path("docs") / "experiments"


@dataclass(frozen=True, slots=True)
class ExperimentSizes:
    """How much is trained and measured: a run of other sizes is another run."""

    tokens: int = field(
        default=25_000, metadata=about("Tokens of the train rows of a run; rows chosen by seed.")
    )
    max_length: int = field(
        default=256, metadata=about("Tokens of a train row; longer ones are left out.")
    )
    batch_tokens: int = field(default=256, metadata=about("Padded tokens of an optimizer step."))
    nll_rows: int = field(default=150, metadata=about("Test rows for the NLL."))
    answer_rows: int = field(default=60, metadata=about("Of those, rows to answer and score."))
    draws: int = field(default=10, metadata=about("Random draws of AdaMix's copies to measure."))
    draw_rows: int = field(
        default=60, metadata=about("Of the test rows, those that draws are measured on.")
    )
    ensemble: int = field(
        default=4, metadata=about("Of those, draws whose probabilities are averaged.")
    )
    dtype: DTypeName = field(default="bfloat16", metadata=about("Number format of the base."))

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and value < 1:
                raise BenchmarkError(f"{one.name} is {value}; it must be at least 1")
        if not 1 <= self.ensemble <= self.draws:
            raise BenchmarkError(
                f"ensemble is {self.ensemble}; it must be from 1 to draws, {self.draws}"
            )


@dataclass(frozen=True, slots=True)
class ExperimentSettings:
    """Which runs, and where they are written down."""

    data: Path = field(metadata=about("Folder with <set>/train.jsonl.gz and test.jsonl.gz."))
    only: tuple[str, ...] = field(default=(), metadata=about("Arm to run; all when left out."))
    task: tuple[str, ...] = field(default=(), metadata=about("Task; all when left out."))
    seeds: tuple[int, ...] = field(
        default=(0,), metadata=about("Decides rows, their order and initial weights; repeatable.")
    )
    jobs: int = field(
        default=2, metadata=about("Runs beside each other, each in a process with one thread.")
    )
    retry_failed: bool = field(
        default=False, metadata=about("Run again what the journal has as failed.")
    )
    journal: Path = field(
        default=JOURNAL, metadata=about("JSON lines of the runs; what is there isn't run again.")
    )
    work: Path = field(
        default=Path("runs") / "experiments", metadata=about("Folder for the runs' adapters.")
    )
    base: str = field(
        default="default", metadata=about("Base model: 'default', a directory or a hub id.")
    )

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise BenchmarkError(f"jobs is {self.jobs}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Where the pages come from, and where they go."""

    journal: Path = field(default=JOURNAL, metadata=about("JSON lines of the runs."))
    pages: Path = field(default=PAGES, metadata=about("Folder of the pages and their pictures."))
