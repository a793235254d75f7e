"""The program `adaptermix`. Its parts are imported when they are used, so that --help is fast."""

from __future__ import annotations

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
for part in (serve, pull, doctor, train, bench, evaluate, adapters, generate, keys):
    part.register(app)


def run() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    run()
