"""The program `adaptermix`. Its parts are imported when they are used: none waits for another's."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from adaptermix.cli.process import check_arguments, prepare_streams, speak_utf8, told_in_a_line

COMMANDS = {  # each with its module, in the order of --help
    **{"serve": "serve", "pull": "pull", "plan": "plan", "doctor": "doctor", "train": "train"},
    **{"bench": "bench", "eval": "evaluate", "adapters": "adapters", "generate": "generate"},
    **{"keys": "keys"},
}


class _Program(TyperGroup):
    """The commands, of which only those that are asked for are imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """See TyperGroup."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """See TyperGroup."""
        if cmd_name in COMMANDS:
            return command(cmd_name)
        self.commands = {name: command(name) for name in COMMANDS}  # near ones are suggested
        return None


@functools.cache
def command(name: str) -> Any:
    """The command or group of commands of a name, its module imported."""
    part = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    import_module(f"adaptermix.cli.{COMMANDS[name]}").register(part)
    check_arguments(part)
    return get_group(part).commands[name]


app = typer.Typer(
    name="adaptermix",
    cls=_Program,
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


def run() -> None:
    """Entry point of the console script."""
    speak_utf8()
    prepare_streams()
    with told_in_a_line():
        app()


if __name__ == "__main__":
    run()
