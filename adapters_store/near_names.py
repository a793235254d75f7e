"""Names that look like a given one, sought in bounded time whatever it is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MOST_SOUGHT = 80  # characters of the name
MOST_KNOWN = 256  # names that it is compared with
MOST_HINTED = 8  # of many problems, those that say near names


def near_names(
    name: str, candidates: Iterable[str], *, most: int = 3, cutoff: float = 0.5
) -> list[str]:
    """At most `most` candidates that look like `name`, the nearest first.

    Looks at the first MOST_KNOWN candidates and the first MOST_SOUGHT characters. `cutoff` is the
    least similarity, in [0, 1] (difflib's ratio).
    """
    return get_close_matches(name[:MOST_SOUGHT], list(islice(candidates, MOST_KNOWN)), most, cutoff)
