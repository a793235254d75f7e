"""Owns the running sums of hidden states at the probe layer, of all live requests that are probed.

The mean over a text so far is what a router reads. The first token is left out: attention makes it
a sink, with a state that is large and the same in every text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Sum = NDArray[np.float32]  # [hidden], of the states at positions [1, stop)
States = NDArray[np.float32]  # [tokens, hidden]


class RunningMeans:
    """The sums in one matrix, in float64: a decode step adds to all of its requests at once."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.totals: NDArray[np.float64] = np.zeros((0, 0))  # [slots, hidden]
        self._free: list[int] = []
        self._num_slots = 0

    def open(self) -> RunningMean:
        """That of a new request."""
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        return RunningMean(self, self._free.pop())

    def close(self, running: RunningMean | None) -> None:
        """Its request has ended; None: it was not probed."""
        if running is not None:
            self._free.append(running.slot)

    def total(self, slot: int, hidden: int) -> NDArray[np.float64]:
        """The row of a slot [hidden], to be written in place before any slot is opened."""
        if self._num_slots > len(self.totals):
            grown = np.zeros((2 * self._num_slots, hidden))
            grown[: len(self.totals), : self.totals.shape[1]] = self.totals
            self.totals = grown
        total: NDArray[np.float64] = self.totals[slot]
        return total

    def read(self, parts: Iterable[tuple[RunningMean | None, int, slice]], states: States) -> None:
        """A step's states: for each request the position of its first and where all of them lie.

        None: a request that is not probed.
        """
        following: list[RunningMean] = []
        rows: list[int] = []
        for running, start, tokens in parts:
            if running is None:
                continue
            if tokens.stop - tokens.start == 1 and running.until == start > 0:
                following.append(running)
                rows.append(tokens.start)
            else:
                running.add(start, states[tokens])
        if following:
            self.totals[[running.slot for running in following]] += states[rows]
        for running in following:
            running.until += 1
            if running.until % self.block_size == 0:
                running.block_sums.append(self.totals[running.slot].astype(np.float32))

    def means(self, those: Sequence[RunningMean]) -> list[Sum | None]:
        """[hidden] of each, or None before there is a state that counts."""
        known = [running for running in those if running.until > 1]
        if not known:
            return [None] * len(those)
        sums = self.totals[[running.slot for running in known]]
        counts = [running.until - 1 for running in known]
        for row, running in enumerate(known):
            if blocks := running.blocks_before_window:
                sums[row] -= running.block_sums[blocks - 1]
                counts[row] = running.until - blocks * self.block_size
        rows = iter((sums / np.array(counts)[:, None]).astype(np.float32))
        return [next(rows) if running.until > 1 else None for running in those]


class RunningMean:
    """One request's sum over positions [0, until), and what it was at each block's end.

    window: of how many tokens, the latest, and those before them in their block, the mean is; None:
    of all.
    """

    __slots__ = ("_all", "block_sums", "slot", "until", "window")

    def __init__(self, running: RunningMeans, slot: int) -> None:
        self._all = running
        self.slot = slot
        self.until = 0
        self.window: int | None = None
        self.block_sums: list[Sum] = []

    @property
    def blocks_before_window(self) -> int:
        """How many whole blocks the mean leaves out."""
        if self.window is None:
            return 0
        return max(0, self.until - self.window) // self._all.block_size

    def add(self, start: int, states: States) -> None:
        """States at positions from `start` on; those known already change nothing."""
        stop = start + len(states)
        if start > self.until:
            raise ValueError(f"states are known until {self.until}, not until {start}")
        if stop <= self.until:
            return
        fresh = states[self.until - start :].astype(np.float64)
        total = self._all.total(self.slot, fresh.shape[1])
        if self.until == 0:
            fresh[0] = total[:] = 0
        sums = np.cumsum(fresh, axis=0) + total
        block_size = self._all.block_size
        for end in range((len(self.block_sums) + 1) * block_size, stop + 1, block_size):
            self.block_sums.append(sums[end - self.until - 1].astype(np.float32))
        total[:] = sums[-1]
        self.until = stop

    def resume(self, block_sums: list[Sum]) -> None:
        """Go on behind blocks that the prefix cache gave; those known already change nothing."""
        until = len(block_sums) * self._all.block_size
        if until > self.until:
            self._all.total(self.slot, len(block_sums[-1]))[:] = block_sums[-1]
            self.block_sums = [*self.block_sums, *block_sums[len(self.block_sums) :]]
            self.until = until

    def mean(self) -> Sum | None:
        """[hidden], or None before there is a state that counts."""
        return self._all.means([self])[0]
