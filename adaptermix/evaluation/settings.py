"""Settings of evaluations. Each field with a help text is an option of its command."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about
from adaptermix.training.settings import DTypeName
from router_engine.request import MAX_MEMBERS


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Settings of `adaptermix eval`: cells, rows and the place of the results."""

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


@dataclass(frozen=True, slots=True)
class UncertaintySettings:
    """Settings of `bench uncertainty`: adapters, rows and the place of the results."""

    data: Path = field(metadata=about("Folder with SET/test.jsonl.gz."))
    adapter: tuple[Path, ...] = field(
        metadata=about("Folder of an adapter kept as copies, trained on ARC; repeatable.")
    )
    members: int = field(default=8, metadata=about("Of the ensemble."))
    rows: int = field(default=300, metadata=about("ARC test rows, and as many unfamiliar ones."))
    unfamiliar: tuple[str, ...] = field(
        default=("openbookqa", "boolq", "gsm8k", "squad"),
        metadata=about("A set that the adapters were not trained on; repeatable."),
    )
    concurrency: int = field(default=8, metadata=about("Requests in flight."))
    speed_rounds: int = field(
        default=3, metadata=about("Times that tokens/s are measured; 0: never.")
    )
    seed: int = field(default=0, metadata=about("Chooses the rows and the members."))
    out: Path = field(
        default=OUT / "uncertainty", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        if not 2 <= self.members <= MAX_MEMBERS:
            raise BenchmarkError(f"members is {self.members}; it must be from 2 to {MAX_MEMBERS}")
        for name, least in (("rows", 2), ("concurrency", 1), ("speed_rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise BenchmarkError(
                    f"{name} is {getattr(self, name)}; it must be at least {least}"
                )
        names = [folder.name for folder in self.adapter]
        if len(set(names)) != len(names):
            raise BenchmarkError(f"adapter names {', '.join(names)}: each folder needs its own")


JOURNAL = OUT / "experiments.jsonl"
PAGES = Path("docs") / "experiments"


@dataclass(frozen=True, slots=True)
class ExperimentSizes:
    """The sizes of a run: one of other sizes is another run."""

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
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int) and value < 1:
                raise BenchmarkError(f"{setting.name} is {value}; it must be at least 1")
        if not 1 <= self.ensemble <= self.draws:
            raise BenchmarkError(
                f"ensemble is {self.ensemble}; it must be from 1 to draws, {self.draws}"
            )


@dataclass(frozen=True, slots=True)
class ExperimentSettings:
    """The runs of an experiment, and the place of their journal."""

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
    """The journal that pages are written from, and their folder."""

    journal: Path = field(default=JOURNAL, metadata=about("JSON lines of the runs."))
    pages: Path = field(default=PAGES, metadata=about("Folder of the pages and their pictures."))
