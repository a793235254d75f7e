"""Owns which mixture weights hold at which token position of one request."""

from __future__ import annotations

import sys
from bisect import bisect_right
from itertools import pairwise

from router_engine.sparse_weights import SparseWeights

WeightRun = tuple[int, SparseWeights]  # (number of tokens, weights)


class WeightsHistory:
    """Weights by position over [0, known_until), as runs of equal weights.

    The history only grows, so KV that was dropped is computed again under the weights that it was
    computed under before. `replace` is for `context: recompute` alone.
    """

    __slots__ = ("_starts", "_weights", "known_until")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._weights: list[SparseWeights] = []
        self.known_until = 0

    @classmethod
    def fixed(cls, weights: SparseWeights) -> WeightsHistory:
        """The same weights at every position."""
        history = cls()
        history.extend(weights, sys.maxsize)
        return history

    @property
    def runs(self) -> tuple[tuple[int, SparseWeights], ...]:
        """(start position, weights), in order."""
        return tuple(zip(self._starts, self._weights, strict=True))

    @property
    def newest(self) -> SparseWeights | None:
        return self._weights[-1] if self._weights else None

    def extend(self, weights: SparseWeights, until: int) -> None:
        """`weights` hold over [known_until, until)."""
        if until <= self.known_until:
            raise ValueError(f"weights are known until {self.known_until}, not only until {until}")
        if weights != self.newest:
            self._starts.append(self.known_until)
            self._weights.append(weights)
        self.known_until = until

    def replace(self, weights: SparseWeights, until: int) -> None:
        """`weights` hold over [0, until), whatever held before."""
        self._starts = [0]
        self._weights = [weights]
        self.known_until = until

    def at(self, position: int) -> SparseWeights:
        """Raises IndexError where no weights are known."""
        if not 0 <= position < self.known_until:
            raise IndexError(f"position {position} is outside [0, {self.known_until})")
        return self._weights[bisect_right(self._starts, position) - 1]

    def between(self, start: int, stop: int) -> tuple[WeightRun, ...]:
        """Runs that cover [start, stop); raises IndexError where no weights are known."""
        if not 0 <= start < stop <= self.known_until:
            raise IndexError(f"[{start}, {stop}) is not within [0, {self.known_until})")
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, stop - 1)
        edges = [start, *self._starts[first + 1 : last], stop]
        lengths = (end - begin for begin, end in pairwise(edges))
        return tuple(zip(lengths, self._weights[first:last], strict=True))
