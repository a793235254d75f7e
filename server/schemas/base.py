"""The base of all bodies: unknown and unsupported fields, other types, infinities are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from adapters_store.near_names import near_names
from router_engine.excerpt import excerpt

_MOST_ECHOED = 80  # characters
_MOST_EXTRAS = 64

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]  # a list that is refused at its first bad item

Timeout = Annotated[
    float | None,
    Field(
        gt=0,
        description="Seconds after which the request is cancelled and ends with 408, wherever it "
        "is: waiting, being routed, or running. Left out: the server's default.",
    ),
]


class Body(BaseModel):
    """A request body.

    `unsupported` maps a field of a foreign API that has no meaning here to the values at which it
    asks for nothing; any other value is refused by name. Numbers are no text, and flags no numbers.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_applied(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = set(cls.model_fields)
        if len(data) > len(fields) + len(cls.unsupported) + _MOST_EXTRAS:
            raise PydanticCustomError(
                "too_many_fields",
                "{count} fields are more than there are: {fields}",
                {"count": len(data), "fields": ", ".join(sorted(fields))},
            )
        values = {}
        for name, value in data.items():
            if name in fields:
                values[name] = value
            elif name in cls.unsupported:
                _refuse_unless_default(name, value, cls.unsupported[name])
            elif cls.model_config.get("extra") == "allow":
                values[name] = value
            else:
                raise _unknown_field(str(name), fields)
        return values


class Reply(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _refuse_unless_default(name: str, value: Any, defaults: tuple[Any, ...]) -> None:
    if any(type(value) is type(default) and value == default for default in defaults):
        return
    raise PydanticCustomError(
        "unsupported_field",
        "{field} is not supported: leave it out (or {default})",
        {"field": name, "value": excerpt(value), "default": repr(defaults[-1])},
    )


def _unknown_field(name: str, fields: set[str]) -> PydanticCustomError:
    name = name[:_MOST_ECHOED]
    near = near_names(name, fields, cutoff=0.6)
    hint = f"near: {', '.join(near)}" if near else f"fields: {', '.join(sorted(fields))}"
    return PydanticCustomError(
        "unknown_field", "{field} is not a field here; {hint}", {"field": name, "hint": hint}
    )
