"""Names of adapters, aliases and tags: what may be one."""

from __future__ import annotations

from collections.abc import Sequence

from adapters_store.errors import StoreError
from adapters_store.types import NAME_PATTERN, Problem


def name_problems(where: str, names: Sequence[str]) -> list[Problem]:
    """Why these are no names of adapters, aliases or tags."""
    return [
        Problem(
            where,
            f"{name[:160]!r}: use letters, digits, '.', '_' and '-', at most 128, no '.' first",
        )
        for name in names
        if not NAME_PATTERN.fullmatch(name)
    ]


def require_names(**given: str | None) -> None:
    """Raises StoreError for what is no name: databases differ in what text they take."""
    for kind, name in given.items():
        if name is not None and (problems := name_problems(kind, [name])):
            raise StoreError(str(problems[0]))
