"""`adaptermix bench experiments`: which training recipe is worth what."""

from __future__ import annotations

from collections.abc import Callable

import typer

from benchmarks.errors import BenchmarkError
from benchmarks.experiments.settings import ExperimentSettings, ExperimentSizes, PageSettings
from server.cli.fields import command_of
from server.cli.output import console, shown
from server.cli.train import Base
from server.settings import load_settings, use_process_environment

Command = Callable[..., None]


def register(app: typer.Typer, reporting: Callable[[Command], Command]) -> None:
    """Mount the commands on `adaptermix bench`, whose errors `reporting` tells."""
    group = typer.Typer(help="Train recipes on equal rows and compare.", no_args_is_help=True)
    group.command("adamix")(reporting(command_of(adamix)))
    group.command("moa")(reporting(command_of(moa)))
    group.command("report")(reporting(command_of(report)))
    app.add_typer(group, name="experiments")


def adamix(experiment: ExperimentSettings, sizes: ExperimentSizes) -> None:
    """AdaMix against one LoRA and one bottleneck: with and without consistency, merged, drawn."""
    _run("adamix", experiment, sizes)


def moa(experiment: ExperimentSettings, sizes: ExperimentSizes) -> None:
    """Mixtures of heterogeneous experts against LoRA and mixtures of LoRA."""
    _run("moa", experiment, sizes)


def report(page: PageSettings) -> None:
    """Write the pages of the experiments from the journal."""
    from benchmarks.experiments.report import write_pages

    for path in write_pages(page.journal, page.pages):
        console.print(shown(str(path)), soft_wrap=True)


def _run(name: str, experiment: ExperimentSettings, sizes: ExperimentSizes) -> None:
    use_process_environment(load_settings().child_environment(1))  # runs inherit it
    from benchmarks.experiments.harness import run_experiment

    base, base_name = Base(base=experiment.base).resolve()
    failed = run_experiment(name, experiment, sizes, base, base_name)
    if failed:
        raise BenchmarkError(f"{failed} runs failed: {experiment.journal} says how")
