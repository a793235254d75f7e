"""Problems of a body in words: each with its field, its value and a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router_engine.excerpt import excerpt

# These problems say the whole of it: the value that they are about is not repeated.
_WITHOUT_VALUE = (
    *("missing", "unknown_field", "too_many_fields", "too_many_parts", "too_many_prompts"),
    *("mixture", "contradiction"),
)


def describe_problem(problem: Mapping[str, Any], path: str) -> str:
    """One of pydantic's problems as `path = value: what would work`."""
    context = problem.get("ctx") or {}
    kind = problem["type"]
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', problem['msg'])}"
    if kind in _WITHOUT_VALUE:
        return f"{path}: {problem['msg']}" if path else str(problem["msg"])
    value = context["value"] if kind == "unsupported_field" else excerpt(problem.get("input"))
    return f"{path} = {value}: {problem['msg']}"


def path_of(problem: Mapping[str, Any], location: Sequence[Any]) -> str:
    """The field's path: `mixture.adapters.0.weight`. Union branches are no part of it.

    location: the problem's `loc`, without what stands for the body itself.
    """
    parts = [str(part) for part in location if not _is_branch(part)]
    named = (problem.get("ctx") or {}).get("field")
    if named:
        parts.append(str(named))
    return ".".join(parts)


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("str", "int"))
