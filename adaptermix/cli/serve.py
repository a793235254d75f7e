"""`adaptermix serve`: every setting is a flag, and an ADAPTERMIX_* variable."""

from __future__ import annotations

from typing import Any

import typer

from adaptermix.cli.output import errors, print_error
from adaptermix.cli.setting_options import with_settings
from server.settings import Settings, SettingsError, load_settings


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("serve")(with_settings(serve, [*Settings.model_fields]))


def serve(**options: Any) -> None:
    """Serve a base model and its adapters over HTTP.

    Every option can also be given as the environment variable in brackets. `adaptermix pull`
    brings the default model; --model tiny-random needs nothing.
    """
    try:
        settings = load_settings(**options)
        # Before anything imports torch: this process only tokenizes, and must not spin.
        from server.settings import use_process_environment

        use_process_environment(settings.child_environment(1))
        from server.serving import run_server

        code = run_server(settings, errors)
    except SettingsError as error:
        print_error(error)
        raise typer.Exit(2) from error
    raise typer.Exit(code)
