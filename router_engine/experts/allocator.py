"""The allocator of rank rows: which adapter owns which rows of a site's storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class RowAllocator:
    """Hands out consecutive rows of [0, capacity), first fit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._spans: dict[str, Span] = {}

    @property
    def used(self) -> int:
        return sum(span.length for span in self._spans.values())

    @property
    def owners(self) -> Mapping[str, Span]:
        return self._spans

    def place(self, owner: str, length: int) -> Span | None:
        """Rows for an owner, or None where no gap is long enough (compact, then try again)."""
        position = 0
        for span in sorted(self._spans.values(), key=lambda span: span.start):
            if span.start - position >= length:
                break
            position = span.stop
        if position + length > self.capacity:
            return None
        self._spans[owner] = Span(position, length)
        return self._spans[owner]

    def release(self, owner: str) -> None:
        del self._spans[owner]

    def compact(self) -> list[tuple[Span, Span]]:
        """Close all gaps; returns the moves (from, to) in an order safe for copying downwards."""
        moves: list[tuple[Span, Span]] = []
        position = 0
        for owner, span in sorted(self._spans.items(), key=lambda item: item[1].start):
            target = Span(position, span.length)
            if target != span:
                moves.append((span, target))
                self._spans[owner] = target
            position = target.stop
        return moves
