"""What is wrong with settings, in one line."""

from __future__ import annotations

from collections.abc import Callable


def explain(error: ValueError, variable_of: Callable[[str], str]) -> str:
    """Every field that an error of pydantic names, with its variable and its value; no secrets."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    lines = []
    for problem in problems(include_url=False, include_context=False):
        field = ".".join(str(part) for part in problem["loc"])
        value = "" if field == "admin_key" else f" = {problem['input']!r}"
        lines.append(f"{field} ({variable_of(field)}){value}: {problem['msg']}")
    return "; ".join(lines)
