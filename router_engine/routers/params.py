"""Reads a router's parameters against its model, so that every wrong key is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adapters_store.near_names import near_names
from router_engine.excerpt import excerpt
from router_engine.routers.errors import RouterInputError

Params = TypeVar("Params", bound=BaseModel)

_MOST_TOLD = 8  # problems


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """'; did you mean a, b?' for the known names that look like `name`, or nothing."""
    near = near_names(name, names)
    return f"; did you mean {', '.join(near)}?" if near else ""


def parse_params(model: type[Params], router: str, params: Mapping[str, Any]) -> Params:
    """Validate `params`; raises RouterInputError naming bad keys and values and what works.

    It names the first few. A model's lists should have `fail_fast`: without it an error is made of
    every item.
    """
    names = list(model.model_fields)
    unknown = [key for key in params if key not in names]
    problems = [
        f"router {router!r} takes no parameter {excerpt(key)}{did_you_mean(key, names)} "
        f"(it takes: {', '.join(names) or 'none'})"
        for key in islice(unknown, _MOST_TOLD)
    ]
    count = len(unknown)
    try:
        parsed = model.model_validate({key: params[key] for key in params if key in names})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [_describe(router, detail) for detail in islice(details, _MOST_TOLD)]
        raise RouterInputError(_told(problems, count + len(details))) from error
    if problems:
        raise RouterInputError(_told(problems, count))
    return parsed


def _told(problems: list[str], count: int) -> str:
    told = "; ".join(problems[:_MOST_TOLD])
    return told if count <= _MOST_TOLD else f"{told}; and {count - _MOST_TOLD} more"


def _describe(router: str, detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if not where:  # a rule over several parameters: its message names them
        return f"router {router!r}: {detail['msg']}"
    return f"router {router!r}: {where} = {excerpt(detail['input'])}: {detail['msg']}"
