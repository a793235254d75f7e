"""Shares of a whole in settings: `20%`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import ByteSize, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")

_SIZE: TypeAdapter[ByteSize] = TypeAdapter(Annotated[ByteSize, Field(ge=1)])


class Share(float):
    """A part of a whole, above 0 and at most 1."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(cls)

    def __str__(self) -> str:
        return f"{100 * self:g}%"


def parse_size(value: Any) -> ByteSize:
    """Bytes, above 0, as people write them: 80GiB. Raises ValueError for what is none."""
    try:
        return _SIZE.validate_python(value)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"])) from error


def share_or_size(value: Any) -> ByteSize | Share | None:
    """A share of what is written with a percent sign, bytes of anything else.

    Raises ValueError for what is neither.
    """
    if value is None or isinstance(value, Share):
        return value
    if not isinstance(value, str) or "%" not in value:
        try:
            return parse_size(value)
        except ValueError as error:
            raise ValueError(f"{error}, or a share such as 20%") from error
    found = _PERCENT.fullmatch(value)
    share = Share(float(found[1]) / 100) if found else Share(0)
    if not 0 < share <= 1:
        raise ValueError("a share is above 0% and at most 100%, such as 20%")
    return share
