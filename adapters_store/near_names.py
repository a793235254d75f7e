"""Names that look like one that was sent, sought in bounded time whatever it is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MOST_SOUGHT = 80  # characters of the name
MOST_KNOWN = 256  # names that it is compared with
MOST_HINTED = 8  # of many problems, those that say near names


def near_names(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.5) -> list[str]:
    """At most `most` of the first known names that look like `name`, the nearest first."""
    return get_close_matches(name[:MOST_SOUGHT], list(islice(known, MOST_KNOWN)), most, cutoff)
