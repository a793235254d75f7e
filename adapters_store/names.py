"""Names of adapters, aliases and tags, and the rule that they follow."""

from __future__ import annotations

from collections.abc import Sequence

from adapters_store.errors import StoreError
from adapters_store.types import NAME_PATTERN, Problem


def name_problems(where: str, names: Sequence[str]) -> list[Problem]:
    """A problem for each text that is no name of an adapter, an alias or a tag."""
    return [
        Problem(
            where,
            f"{name[:160]!r}: use letters, digits, '.', '_' and '-', at most 128, no '.' first",
        )
        for name in names
        if not NAME_PATTERN.fullmatch(name)
    ]


def require_names(**names_by_kind: str | None) -> None:
    """Raises StoreError for a text that is no name: databases differ in what text they take."""
    for kind, name in names_by_kind.items():
        if name is not None and (problems := name_problems(kind, [name])):
            raise StoreError(str(problems[0]))
