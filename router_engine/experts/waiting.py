"""Who waits for adapters on the device, what makes room for it, and why it may wait in vain."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Waiter:
    """An owner that asked for adapters and does not have them yet."""

    owner: str
    digests: tuple[str, ...]
    on_host: bool = False  # their copies on the host are wanted too
    overtaken: int = 0  # owners that came later and were granted before
    draining: frozenset[str] = frozenset()  # residents that make room once their users have ended


@dataclass(frozen=True, slots=True)
class LoadResults:
    """What one `pump` settled: owners whose adapters are all on the device, and failures.

    refused: those whose adapters find no room however long they wait.
    """

    ready: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # (owner, reason)
    refused: tuple[tuple[str, str], ...] = ()


def fewest(residents: Sequence[str], makes_room: Callable[[Sequence[str]], bool]) -> frozenset[str]:
    """As few of the first residents as make room together; all where even they do not."""
    count = bisect_left(range(len(residents)), 1, key=lambda n: int(makes_room(residents[:n])))
    return frozenset(residents[:count])


def misfit(rows: Counter[str], staying: Counter[str], limit: int) -> str | None:
    """Why adapters with so many rank rows by site find no room; None if they could.

    staying: rows of what leaves the device at an admin's word alone. limit: rows of one site.
    """
    site = max(rows, key=lambda each: rows[each] + staying[each], default=None)
    if site is None or rows[site] + staying[site] <= limit:
        return None
    told = f"the adapters need {rows[site]} rank rows in one layer, the device pool holds {limit}"
    if rows[site] > limit:
        return f"{told}: use fewer adapters or a larger max_rank_rows"
    return (
        f"{told}, of which pinned and merged adapters keep {staying[site]}: unpin some, restore "
        "the base, or use a larger max_rank_rows"
    )
