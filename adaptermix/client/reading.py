"""Bodies as they come, read and checked: what is sent by others may be anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class ForeignBodyError(Exception):
    """A body that AdapterMix doesn't send; whoever knows the address says whose it is."""


def shaped(shape: type[M]) -> Callable[[bytes], M]:
    """Reads JSON that has at least the fields of a shape: a later server may say more."""

    def parse(content: bytes) -> M:
        try:
            return shape.model_validate_json(content, strict=True, extra="ignore")
        except ValueError as error:
            raise ForeignBodyError from error

    return parse


def picked(shape: type[M], pick: Callable[[M], T]) -> Callable[[bytes], T]:
    """Reads a part of what has a shape."""
    parse = shaped(shape)
    return lambda content: pick(parse(content))


def as_json(content: bytes) -> Any:
    """Any JSON. Raises ForeignBodyError."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # of bytes that are no UTF-8 too
        raise ForeignBodyError from error
