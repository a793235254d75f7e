"""Names in messages."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 8


def some(names: Iterable[object], most: int = _SHOWN) -> str:
    """The first names, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) + more) or "nothing"
