"""Owns the running sum of one request's hidden states at the tap layer.

Their mean over the text so far is what a router reads. The first token is left out: attention
makes it a sink, with a state that is large and the same in every text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sum = NDArray[np.float32]  # [hidden], of the states at positions [1, stop)


class RunningMean:
    """The sum over positions [0, until), in float64, and what it was at each block's end."""

    __slots__ = ("_block_size", "_total", "block_sums", "until")

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._total: NDArray[np.float64] | None = None
        self.until = 0
        self.block_sums: list[Sum] = []

    def add(self, start: int, states: NDArray[np.float32]) -> None:
        """States [n, hidden] at positions from `start` on; those known already change nothing."""
        stop = start + len(states)
        if start > self.until:
            raise ValueError(f"states are known until {self.until}, not until {start}")
        if stop <= self.until:
            return
        if self._total is not None and start == self.until and len(states) == 1:
            self._total += states[0]  # a decode step of many requests: no arrays on the way
            self.until = stop
            if stop % self._block_size == 0:
                self.block_sums.append(self._total.astype(np.float32))
            return
        fresh = states[self.until - start :].astype(np.float64)
        if self._total is None:
            self._total = np.zeros(fresh.shape[1])
        if self.until == 0:
            fresh[0] = 0
        sums = np.cumsum(fresh, axis=0) + self._total
        for end in range(self._next_end(), stop + 1, self._block_size):
            self.block_sums.append(sums[end - self.until - 1].astype(np.float32))
        self._total = sums[-1].copy()
        self.until = stop

    def resume(self, block_sums: list[Sum]) -> None:
        """Go on behind blocks that the prefix cache gave; those known already change nothing."""
        until = len(block_sums) * self._block_size
        if until > self.until:
            self._total = block_sums[-1].astype(np.float64)
            self.block_sums = [*self.block_sums, *block_sums[len(self.block_sums) :]]
            self.until = until

    def mean(self) -> NDArray[np.float32] | None:
        """[hidden], or None before there is a state that counts."""
        if self._total is None or self.until < 2:
            return None
        mean: NDArray[np.float32] = np.multiply(
            self._total, 1 / (self.until - 1), dtype=np.float32, casting="same_kind"
        )
        return mean

    def _next_end(self) -> int:
        return (len(self.block_sums) + 1) * self._block_size
