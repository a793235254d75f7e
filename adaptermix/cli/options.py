"""A command whose options are the fields of one dataclass, when they are many."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

T = TypeVar("T")


def command_with(options: type[T], function: Callable[[T], None]) -> Callable[..., None]:
    """`function(options)` as typer reads it: one parameter a field, with the field's annotation."""
    hints = get_type_hints(options, include_extras=True)
    fields = dataclasses.fields(cast(Any, options))
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=hints[field.name],
        )
        for field in fields
    ]

    def command(**values: Any) -> None:
        function(options(**values))

    command.__doc__ = function.__doc__
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
