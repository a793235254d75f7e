"""Names in messages."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 8


def some(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) + more) or "nothing"
