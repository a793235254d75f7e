"""Requests that wait for adapters on the device: what makes room, and why one may wait in vain."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from adapters_store.types import AdapterManifest


@dataclass(slots=True)
class Waiter:
    """An owner that asked for adapters and does not have them yet."""

    owner: str
    digests: tuple[str, ...]
    on_host: bool = False  # their copies on the host are wanted too
    bypassed: int = 0  # owners that came later and were granted before
    draining: frozenset[str] = frozenset()  # residents that make room once their users have ended


@dataclass(frozen=True, slots=True)
class LoadResults:
    """Owners whose waiting one `poll` has ended."""

    ready: tuple[str, ...] = ()  # all their adapters are on the device
    failed: tuple[tuple[str, str], ...] = ()  # (owner, reason): a file cannot be read
    refused: tuple[tuple[str, str], ...] = ()  # (owner, reason): no waiting would help


class WaitList:
    """Owners that wait for adapters, in the order of their coming.

    Whoever came later and is granted before has bypassed them. One who waits for rows and was
    bypassed `max_bypassed` times starves: room is to be made for it.
    """

    def __init__(self, max_bypassed: int) -> None:
        self._max_bypassed = max_bypassed
        self._waiters: list[Waiter] = []

    def __iter__(self) -> Iterator[Waiter]:
        """Over those that wait now, whoever is granted meanwhile."""
        return iter(tuple(self._waiters))

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: Waiter) -> None:
        """It came last."""
        self._waiters.append(waiter)

    def grant(self, waiter: Waiter) -> bool:
        """It waits no more; whether it has bypassed anybody."""
        before = self._waiters[: self._waiters.index(waiter)]
        self._waiters.remove(waiter)
        return self._bypass(before)

    def grant_newcomer(self) -> bool:
        """Somebody need not wait at all; whether it has bypassed anybody."""
        return self._bypass(self._waiters)

    def drop(self, owners: Collection[str]) -> bool:
        """They wait no more and got nothing; whether there were any."""
        before = len(self._waiters)
        self._waiters = [waiter for waiter in self._waiters if waiter.owner not in owners]
        return len(self._waiters) < before

    def starving(self, waits_for_rows: Callable[[Waiter], bool]) -> Waiter | None:
        """The first that waits for rows, if it was bypassed too often."""
        first = next(filter(waits_for_rows, self._waiters), None)
        return None if first is None or first.bypassed < self._max_bypassed else first

    @staticmethod
    def _bypass(waiters: Sequence[Waiter]) -> bool:
        for waiter in waiters:
            waiter.bypassed += 1
        return bool(waiters)


def fewest(residents: Sequence[str], makes_room: Callable[[Sequence[str]], bool]) -> frozenset[str]:
    """As few of the first residents as make room together; all where even they do not."""
    count = bisect_left(range(len(residents)), 1, key=lambda n: int(makes_room(residents[:n])))
    return frozenset(residents[:count])


def lack_of_room(needed: int, staying: int, limit: int) -> str | None:
    """Why adapters of so many bytes find no room on the device; None if they could.

    staying: bytes of what leaves the device at an admin's word alone. limit: those for adapters.
    """
    if needed + staying <= limit:
        return None
    told = f"the adapters need {needed:,} bytes on the device, which has {limit:,} for adapters"
    if needed > limit:
        return f"{told}: use fewer adapters or a larger adapter_memory"
    return (
        f"{told}, of which pinned and merged adapters keep {staying:,}: unpin some, restore "
        "the base, or use a larger adapter_memory"
    )


def unrunnable(
    digest: str, manifest: AdapterManifest | None, kinds: Collection[str] | None
) -> str | None:
    """Why a backend that runs experts of these kinds alone cannot run an adapter.

    None where it can; `kinds` None for a backend that runs all of them.
    """
    if manifest is None or kinds is None:
        return None
    expert = next((each for each in manifest.experts if each.kind not in kinds), None)
    if expert is None:
        return None
    return (
        f"{digest} holds {expert.extras}, and what computes here runs the kinds "
        f"{', '.join(sorted(kinds))} alone: start the server with ADAPTERMIX_KERNELS=reference, "
        "which runs every kind"
    )
