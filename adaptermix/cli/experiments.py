"""`adaptermix bench experiments`: which training recipe is worth what."""

from __future__ import annotations

from collections.abc import Callable

import typer

from adaptermix.bench.errors import BenchmarkError
from adaptermix.cli.fields import command_of
from adaptermix.cli.output import console
from adaptermix.cli.train import Base
from adaptermix.evaluation.settings import ExperimentSettings, ExperimentSizes, PageSettings
from server.printable import as_markup
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
    from adaptermix.evaluation.recipes.report import write_pages

    for path in write_pages(page.journal, page.pages):
        console.print(as_markup(str(path)), soft_wrap=True)


def _run(name: str, experiment: ExperimentSettings, sizes: ExperimentSizes) -> None:
    use_process_environment(load_settings().child_environment(1))  # runs inherit it
    from adaptermix.evaluation.recipes.harness import run_experiment

    base, base_name = Base(base=experiment.base).resolve()
    failed = run_experiment(name, experiment, sizes, base, base_name)
    if failed:
        raise BenchmarkError(f"{failed} runs failed: {experiment.journal} says how")
