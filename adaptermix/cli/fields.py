"""Dataclass fields as command line options, so that each setting is written down once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

import typer


def command_of(function: Callable[..., None]) -> Callable[..., None]:
    """`function(one: DataclassA, two: DataclassB)` as a command with an option for every field.

    A field's default is the option's, its `help` metadata what `--help` shows; a field without
    default must be given. Field names must differ across the dataclasses. What a dataclass raises
    when it is made comes out of the command.
    """
    groups = get_type_hints(function)
    groups.pop("return", None)
    parameters = [parameter for group in groups.values() for parameter in _options(group)]

    def command(**values: Any) -> None:
        function(**{name: _build(group, values) for name, group in groups.items()})

    command.__doc__ = function.__doc__
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(_default(field), help=field.metadata["help"]),
            annotation=_plain(hints[field.name]),
        )
        for field in dataclasses.fields(group)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    return ... if field.default is dataclasses.MISSING else field.default


def _plain(annotation: Any) -> Any:
    """typer repeats an option for a list, but reads a tuple as a fixed number of values."""
    if get_origin(annotation) is tuple:
        return GenericAlias(list, get_args(annotation)[:1])
    return annotation


def _build(group: type, values: dict[str, Any]) -> Any:
    chosen = {field.name: values[field.name] for field in dataclasses.fields(group)}
    lists = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    return group(**chosen | lists)
