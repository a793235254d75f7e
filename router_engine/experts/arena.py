"""An arena: places in one buffer. Where its free bytes lie in pieces, neighbours close ranks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that go to a lower place; the two may overlap."""

    name: str
    source: int  # first byte
    target: int
    size: int


class Arena:
    """Places by name: the lowest gap that is large enough. All numbers in bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._places: dict[str, tuple[int, int]] = {}  # (first byte, size)
        self._gaps = [(0, num_bytes)]  # likewise, by place; no two of them touch

    @property
    def free_bytes(self) -> int:
        return sum(size for _, size in self._gaps)

    def take(self, name: str, size: int) -> tuple[int, Sequence[Move]]:
        """A place's first byte, and what must move before it is used, in this order.

        The caller has made sure that so many bytes are free.
        """
        moves: Sequence[Move] = ()
        if size == 0:
            self._places[name] = (0, 0)
            return 0, moves
        index = self._gap(size)
        if index is None:
            moves = self._close_ranks(size)
            index = self._gap(size)
        assert index is not None
        first, room = self._gaps[index]
        self._gaps[index : index + 1] = [(first + size, room - size)] if room > size else []
        self._places[name] = (first, size)
        return first, moves

    def free(self, name: str) -> None:
        """Give a place up."""
        first, size = self._places.pop(name)
        if size == 0:
            return
        index = bisect_left(self._gaps, (first, size))
        if index < len(self._gaps) and self._gaps[index][0] == first + size:
            size += self._gaps.pop(index)[1]
        if index > 0 and sum(self._gaps[index - 1]) == first:
            index -= 1
            before = self._gaps.pop(index)
            first, size = before[0], before[1] + size
        self._gaps.insert(index, (first, size))

    def _gap(self, size: int) -> int | None:
        return next((i for i, (_, room) in enumerate(self._gaps) if room >= size), None)

    def _close_ranks(self, size: int) -> Sequence[Move]:
        """Have those neighbours move together that open a gap of `size` by the fewest bytes."""
        places = sorted((first, size, name) for name, (first, size) in self._places.items())
        start, stop = _fewest_bytes([place[:2] for place in places], size, self.num_bytes)
        target = sum(places[start - 1][:2]) if start else 0
        moves = []
        for first, length, name in places[start:stop]:
            if first != target:
                moves.append(Move(name, first, target, length))
                self._places[name] = (target, length)
            target += length
        self._gaps = _gaps([*self._places.values()], self.num_bytes)
        return moves


def _fewest_bytes(places: Sequence[tuple[int, int]], size: int, end: int) -> tuple[int, int]:
    """The neighbours [start, stop) with `size` free bytes around them that are the fewest bytes."""
    best: tuple[int, int, int] | None = None
    stop = taken = 0  # of places[start:stop]
    for start in range(len(places)):
        low = sum(places[start - 1]) if start else 0
        while _start_of(places, stop, end) - low - taken < size and stop < len(places):
            taken += places[stop][1]
            stop += 1
        if _start_of(places, stop, end) - low - taken < size:
            break
        best = min(best or (taken, start, stop), (taken, start, stop))
        taken -= places[start][1]
    assert best is not None, "so many bytes are not free"
    return best[1:]


def _start_of(places: Sequence[tuple[int, int]], index: int, end: int) -> int:
    return places[index][0] if index < len(places) else end


def _gaps(places: Sequence[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """What is free between places, as (first byte, size)."""
    gaps, first = [], 0
    for start, size in [*sorted(places), (end, 0)]:
        if start > first:
            gaps.append((first, start - first))
        first = start + size
    return gaps
