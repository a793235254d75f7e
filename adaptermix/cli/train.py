"""`adaptermix train`: make adapters, and measure how far they are ahead of the base."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptermix.cli.fields import command_of
from adaptermix.cli.output import console, fail
from adaptermix.system_errors import reason
from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import (
    AdamixSettings,
    DataSettings,
    DTypeName,
    GatedLoraSettings,
    LoopSettings,
    LoraSettings,
    MoaSettings,
    MoeLoraSettings,
    RunSettings,
    about,
)
from router_engine.assets import DEFAULT, DEFAULT_MODEL, resolve_model
from router_engine.config import TINY_RANDOM
from router_engine.errors import EngineError
from router_engine.processors import check_threads, limit_torch
from server.printable import as_markup
from server.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from adaptermix.training.loop import StepReport
    from adaptermix.training.run import Outcome

_EXTRA = ("peft", "matplotlib")
_DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"


def register(app: typer.Typer) -> None:
    """Mount the commands on the program."""
    group = typer.Typer(help="Make adapters and measure them.", no_args_is_help=True)
    group.command("lora")(_reporting(command_of(lora)))
    group.command("adamix")(_reporting(command_of(adamix)))
    group.command("moa")(_reporting(command_of(moa)))
    group.command("moe-lora")(_reporting(command_of(moe_lora)))
    group.command("eval")(_reporting(command_of(evaluate)))
    app.add_typer(group, name="train")


@dataclass(frozen=True, slots=True)
class Base:
    """Which base model, and how it is computed with."""

    base: str = field(
        default=DEFAULT, metadata=about("Base model: 'default', a directory or a hub id.")
    )
    revision: str | None = field(
        default=None, metadata=about("Branch, tag or commit of a base that is a hub id.")
    )
    base_name: str | None = field(
        default=None, metadata=about("What adapters call the base; from --base when left out.")
    )
    dtype: DTypeName = field(default="bfloat16", metadata=about("Number format of the base."))
    device: str = field(default="cpu", metadata=about("Where to compute: cpu or cuda."))
    threads: int | None = field(
        default=None,
        metadata=about("Threads; when left out torch's count, within the cores that may be used."),
    )
    cache: Path | None = field(
        default=None, metadata=about("Cache directory; the setting `cache` when left out.")
    )

    def resolve(self) -> tuple[str, str]:
        """(what transformers loads, public name), both checked; sets the number of threads."""
        import torch

        from adaptermix.training.base import check_base, torch_device

        if self.base == TINY_RANDOM:
            raise TrainingError(f"base {TINY_RANDOM!r} is made anew each time; use a directory")
        check_threads("threads", self.threads)
        torch_device(self.device)
        if self.threads is None:
            limit_torch()
        else:
            torch.set_num_threads(self.threads)
        path = resolve_model(self.base, load_settings(cache=self.cache).cache_dir)
        check_base(str(path), self.revision)
        named = _DEFAULT_MODEL_NAME if self.base in (DEFAULT, DEFAULT_MODEL) else str(path)
        public = Path(named).name if isinstance(path, Path) else named
        return str(path), self.base_name or public


@dataclass(frozen=True, slots=True)
class Source:
    """What is learnt from."""

    data: tuple[Path, ...] = field(
        metadata=about("JSON lines of {prompt, completion}, maybe .gz; several are put together.")
    )
    data_licence: str = field(metadata=about("Licence of the data, for the adapter's card."))


@dataclass(frozen=True, slots=True)
class Output:
    """Where the adapter goes."""

    out: Path = field(metadata=about("Adapter folder to write; an interrupted run goes on there."))
    checkpoint_every: int = field(
        default=50, metadata=about("Steps between two checkpoints; 0 writes none.")
    )
    restart: bool = field(default=False, metadata=about("Begin anew instead of going on."))

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise TrainingError(
                f"checkpoint_every is {self.checkpoint_every}; it must be at least 0"
            )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured."""

    adapters: tuple[Path, ...] = field(metadata=about("Adapter folder; its name is the system's."))
    data: Path = field(metadata=about("Folder with <set>/test.jsonl.gz."))
    out: Path = field(metadata=about("JSON file to write; the tables go beside it as .md."))
    tasks: tuple[str, ...] = field(
        default=("math", "science", "code", "reading"), metadata=about("Task to measure on.")
    )
    nll_rows: int = field(default=150, metadata=about("Test rows of a task for the NLL."))
    answer_rows: int = field(default=100, metadata=about("Of those, rows to answer and score."))
    seed: int = field(default=0, metadata=about("Chooses the rows."))

    def __post_init__(self) -> None:
        names = [folder.resolve().name for folder in self.adapters]
        if twice := {name for name in names if names.count(name) > 1}:
            raise TrainingError(
                f"several adapters are called {', '.join(sorted(twice))}: rename their folders"
            )


def lora(
    source: Source,
    output: Output,
    base: Base,
    lora: LoraSettings,
    data: DataSettings,
    loop: LoopSettings,
) -> None:
    """Train a LoRA adapter on the completions of the data."""
    from adaptermix.training.recipes.lora import train_lora

    _train(train_lora, output, _run_settings(source, base, lora, data, loop))


def adamix(
    source: Source,
    output: Output,
    base: Base,
    lora: LoraSettings,
    adamix: AdamixSettings,
    data: DataSettings,
    loop: LoopSettings,
) -> None:
    """Train copies of an adapter that are drawn at random; their mean is the adapter."""
    from adaptermix.training.recipes.adamix import train_adamix

    settings = _run_settings(source, base, lora, data, loop)
    _train(functools.partial(train_adamix, adamix=adamix), output, settings)


def moa(
    source: Source,
    output: Output,
    base: Base,
    lora: GatedLoraSettings,
    moa: MoaSettings,
    data: DataSettings,
    loop: LoopSettings,
) -> None:
    """Train experts of several kinds in every layer, each under a gate of the layer's router."""
    from adaptermix.training.recipes.moa import train_moa

    settings = _run_settings(source, base, lora, data, loop)
    _train(functools.partial(train_moa, moa=moa), output, settings)


def moe_lora(
    source: Source,
    output: Output,
    base: Base,
    lora: GatedLoraSettings,
    moe: MoeLoraSettings,
    data: DataSettings,
    loop: LoopSettings,
) -> None:
    """Train several LoRA experts at every target, of which a router in the layer takes some."""
    from adaptermix.training.recipes.moa import train_moe_lora

    settings = _run_settings(source, base, lora, data, loop)
    _train(functools.partial(train_moe_lora, moe=moe), output, settings)


def _run_settings(
    source: Source, base: Base, lora: LoraSettings, data: DataSettings, loop: LoopSettings
) -> RunSettings:
    path, name = base.resolve()
    return RunSettings(
        base=path,
        base_name=name,
        files=source.data,
        licence=source.data_licence,
        data=data,
        lora=lora,
        loop=loop,
        dtype=base.dtype,
        device=base.device,
        revision=base.revision,
    )


def _train(train: Callable[..., Outcome], output: Output, settings: RunSettings) -> None:
    """Run a recipe behind a progress bar and tell what came of it."""
    with _bar("training") as advance:

        def on_step(report: StepReport) -> None:
            losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
            advance(report.step, report.num_steps, losses)

        outcome = train(
            settings,
            output.out,
            checkpoint_every=output.checkpoint_every,
            restart=output.restart,
            on_step=on_step,
        )
    if outcome.dev_before is not None and outcome.dev_after is not None:
        console.print(f"dev loss {outcome.dev_before:.4f} -> {outcome.dev_after:.4f}")
    for what, said in outcome.notes.items():
        console.print(as_markup(f"{what}: {said}"), soft_wrap=True)
    console.print(as_markup(str(output.out)), soft_wrap=True)


def evaluate(evaluation: Evaluation, base: Base) -> None:
    """Measure adapters and the base: completion NLL and answers, with 95 % intervals."""
    from adaptermix.evaluation.scoring.models import Systems
    from adaptermix.evaluation.scoring.run import ScoringSettings, markdown, provenance
    from adaptermix.evaluation.scoring.run import evaluate as measure
    from adaptermix.evaluation.scoring.tasks import task_named

    tasks = [task_named(name) for name in evaluation.tasks]
    settings = ScoringSettings(
        evaluation.data, evaluation.nll_rows, evaluation.answer_rows, evaluation.seed
    )
    path, name = base.resolve()
    adapters = {folder.resolve().name: folder for folder in evaluation.adapters}
    systems = Systems(path, adapters, base.dtype, base.device, base.revision)
    cells = len(tasks) * len(systems.names)
    with _bar("measuring") as advance:
        done = iter(range(1, cells + 1))
        results = measure(
            systems, tasks, settings, lambda task, of: advance(next(done), cells, f"{of} on {task}")
        )
    written: Mapping[str, Any] = provenance(name, base.dtype, settings) | {"results": results}
    evaluation.out.parent.mkdir(parents=True, exist_ok=True)
    evaluation.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    tables = evaluation.out.with_suffix(".md")
    tables.write_text(markdown(results), encoding="utf-8")
    for written_to in (evaluation.out, tables):
        console.print(as_markup(str(written_to)), soft_wrap=True)


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with expected errors told in one line and exit code 1."""

    @functools.wraps(command)
    def reporting(**values: Any) -> None:
        try:
            _require_extra()
            command(**values)
        except (TrainingError, EngineError, SettingsError, OSError) as error:
            fail(reason(error), error)

    return reporting


def _require_extra() -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}: run `pip install 'adaptermix[train]'`"
        )


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; yields advance(done, total, note)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(label, total=None)

        def advance(done: int, total: int, note: str) -> None:
            progress.update(task, completed=done, total=total, description=f"{label}: {note}")

        yield advance
