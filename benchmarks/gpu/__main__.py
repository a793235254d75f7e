"""`python -m benchmarks.gpu`: `run` measures what is not there yet, `report` renders the page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.cli.fields import command_of
from benchmarks.gpu.report import write_report
from benchmarks.gpu.run import PhaseSettings, measure
from benchmarks.gpu.settings import CardSettings

_WRONG = 2  # exit status of settings that are no good


def run(settings: CardSettings, run: PhaseSettings) -> None:
    """Measure phase by phase; each cell is written at once. Exit status 1 where one failed."""
    logging.basicConfig(level=logging.WARNING)
    failures = measure(settings, run, Console())
    write_report(run.out)
    if failures:
        raise typer.Exit(1)


def report(out: Annotated[Path, typer.Option(help="Folder of the phases' files.")]) -> None:
    """Render gpu.md from what files there are."""
    Console().print(write_report(out), markup=False, soft_wrap=True)


app = typer.Typer(help="Measurements on a GPU in a few minutes.", no_args_is_help=True)
app.command("run")(command_of(run))
app.command("report")(report)


if __name__ == "__main__":
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(_WRONG) from None
