"""The program `adaptermix`. Its parts are imported when they are used, so that --help is fast."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from server.cli import adapters, bench, doctor, evaluate, generate, keys, pull, serve, train
from server.cli.process import check_arguments, prepare_streams, speak_utf8, told_in_a_line

app = typer.Typer(
    name="adaptermix",
    help="Serve one base model under thousands of adapters: every request, even every token, "
    "under its own mixture.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"adaptermix {version('adaptermix')}")
        raise typer.Exit


@app.callback()
def program(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """What all commands have in common."""


for part in (serve, pull, doctor, train, bench, evaluate, adapters, generate, keys):
    part.register(app)
check_arguments(app)


def run() -> None:
    """Entry point of the console script."""
    speak_utf8()
    prepare_streams()
    with told_in_a_line():
        app()


if __name__ == "__main__":
    run()
