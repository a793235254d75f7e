"""Replies as JSON, written in parts: no single one holds up the other threads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import to_json

_FEW = 32  # items that are written in one go
_SLICE = 1024  # numbers or texts
_PLAIN = str | int | float | None


class WrittenResponse(Response):
    """An answer whose JSON is there already."""

    media_type = "application/json"


def json_of(reply: Any) -> bytes:
    """The JSON of a reply (a model, or lists and dicts of them). What is not finite is null.

    A call into a library holds all threads up until it returns. So what may be long is handed to
    it piece by piece.
    """
    return b"".join(_parts(reply))


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, BaseModel) and not _is_short(value):
        yield from _model(value)
    elif isinstance(value, list) and not _is_short(value):
        yield from _list(value)
    else:
        yield to_json(value, inf_nan_mode="null")


def _is_short(value: Any) -> bool:
    """Whether it is little, to all appearance: lists hold things of one kind."""
    if isinstance(value, BaseModel):
        return all(map(_is_short, value.__dict__.values()))
    if isinstance(value, list | dict):
        return len(value) <= _FEW and all(map(_is_short, islice(value, 1)))
    return True


def _model(value: BaseModel) -> Iterator[bytes]:
    separator = b"{"
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        if field.exclude_if is not None and field.exclude_if(item):
            continue
        yield separator + to_json(name) + b":"
        yield from _parts(item)
        separator = b","
    yield b"{}" if separator == b"{" else b"}"


def _list(value: list[Any]) -> Iterator[bytes]:
    separator = b"["
    if isinstance(value[0], _PLAIN):
        for start in range(0, len(value), _SLICE):
            yield separator + to_json(value[start : start + _SLICE], inf_nan_mode="null")[1:-1]
            separator = b","
    else:
        for item in value:
            yield separator
            yield from _parts(item)
            separator = b","
    yield b"]"
