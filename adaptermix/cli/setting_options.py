"""Options of commands that are settings of the server."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from server.settings import Settings, variable_of

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


def with_settings(
    run: Callable[..., None], names: Sequence[str], own: Sequence[inspect.Parameter] = ()
) -> Callable[..., None]:
    """A command: `run` with one typer option for each of these settings, after `own`."""
    parameters = [*own, *(_parameter(name, Settings.model_fields[name]) for name in names)]

    def command(**options: Any) -> None:
        run(**options)

    command.__doc__ = run.__doc__
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
