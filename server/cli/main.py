"""The program `adaptermix`. Its parts are imported when they are used, so that --help is fast."""

from __future__ import annotations

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from server.cli import adapters, bench, doctor, evaluate, generate, keys, pull, serve, train

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


def run() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a locale that lacks a character shows its number
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    run()
