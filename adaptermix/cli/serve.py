"""`adaptermix serve`: every setting is a flag, and an ADAPTERMIX_* variable."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from adaptermix.cli.output import errors, print_error
from server.settings import Settings, SettingsError, load_settings, variable_of

_GROUPS = {
    "Model": (
        *("model", "revision", "dtype", "device", "kernels", "cpu_isa", "cache"),
        *("encoder", "encoder_dtype"),
    ),
    "Store": ("store", "database_url", "database_patience", "blobs_url", "adapters"),
    "HTTP": (
        *("host", "port", "admin_key", "max_body", "max_upload", "body_patience"),
        *("max_waiting", "default_timeout", "max_timeout", "drain_seconds"),
    ),
    "Logs and metrics": ("log_level", "log_format", "metrics_adapters"),
    "Processes": ("engine_threads", "engine_patience", "encoder_threads", "omp_wait_policy"),
}
_PANELS = {field: panel for panel, fields in _GROUPS.items() for field in fields}


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("serve")(_command())


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


def _command() -> Callable[..., None]:
    """`serve` with one typer option for each setting."""
    parameters = [_parameter(name, field) for name, field in Settings.model_fields.items()]

    def command(**options: Any) -> None:
        serve(**options)

    command.__doc__ = serve.__doc__
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag,
        help=f"{field.description} [dim]\\[{variable_of(name)}; default: {_shown(field)}][/]",
        rich_help_panel=_PANELS.get(name, "Engine"),
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_plain(field.annotation) | None, option],
    )


def _plain(annotation: Any) -> Any:
    """A type that typer reads; pydantic checks the value afterwards."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal or annotation in (int, bool, Path):
        return annotation
    return str  # sizes ("512MB") and secrets too


def _shown(field: FieldInfo) -> str:
    default = field.default
    if default is None:
        return "none"
    return default.human_readable() if hasattr(default, "human_readable") else str(default)
