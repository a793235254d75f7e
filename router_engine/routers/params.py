"""Reads a router's parameters against its model, so that every wrong key is refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from router_engine.routers.errors import RouterInputError
from router_engine.shown import shown

Params = TypeVar("Params", bound=BaseModel)


def near_names(name: str, known: Iterable[str]) -> str:
    """'; did you mean a, b?' for the known names that look like `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def parse_params(model: type[Params], router: str, params: Mapping[str, Any]) -> Params:
    """Validate `params`; raises RouterInputError naming each bad key and value and what works."""
    known = list(model.model_fields)
    problems = [
        f"router {router!r} takes no parameter {key!r}{near_names(key, known)} "
        f"(it takes: {', '.join(known) or 'none'})"
        for key in params
        if key not in known
    ]
    try:
        parsed = model.model_validate({key: params[key] for key in params if key in known})
    except ValidationError as error:
        problems += [_describe(router, detail) for detail in error.errors(include_url=False)]
        raise RouterInputError("; ".join(problems)) from error
    if problems:
        raise RouterInputError("; ".join(problems))
    return parsed


def _describe(router: str, detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if not where:  # a rule over several parameters: its message names them
        return f"router {router!r}: {detail['msg']}"
    return f"router {router!r}: {where} = {shown(detail['input'])}: {detail['msg']}"
