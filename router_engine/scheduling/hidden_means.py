"""Owns the running sums of hidden states at the probe layer, of all live requests that read them.

The mean over a text so far is what a router reads. The first token is left out: attention makes it
a sink, with a state that is large and the same in every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from router_engine.events import FinalEvent
from router_engine.scheduling.observers import RequestObserver
from router_engine.scheduling.plan import StepOutput

Sum = NDArray[np.float32]  # [hidden], of the states at positions [1, stop)
States = NDArray[np.float32]  # [tokens, hidden]


class RunningMeans:
    """The sums in one matrix, in float64: a decode step adds to all of its requests at once."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.totals: NDArray[np.float64] = np.zeros((0, 0))  # [slots, hidden]
        # By KV block, at its end: so that cached prompts are routed as fresh ones are. Keys of such
        # requests are their own, so what one finds was published by another, with its sum.
        self.published: dict[int, Sum] = {}
        self._by_request: dict[str, RunningMean] = {}
        self._free: list[int] = []
        self._num_slots = 0
        # Requests of the step that go on by one token, each with its states [hidden].
        self._following: list[tuple[RunningMean, States]] = []

    def open(self, request_id: str, *, is_reported: bool = False) -> RunningMean:
        """That of a new request. is_reported: its final event tells the mean."""
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        running = RunningMean(self, self._free.pop(), request_id, is_reported=is_reported)
        self._by_request[request_id] = running
        return running

    def close(self, running: RunningMean) -> None:
        """Its request has ended."""
        del self._by_request[running.request_id]
        self._free.append(running.slot)

    def find(self, request_id: str) -> RunningMean | None:
        """That of a live request; None where it reads no hidden states."""
        return self._by_request.get(request_id)

    def total(self, slot: int, hidden: int) -> NDArray[np.float64]:
        """The row of a slot [hidden], to be written in place before any slot is opened."""
        if self._num_slots > len(self.totals):
            grown = np.zeros((2 * self._num_slots, hidden))
            grown[: len(self.totals), : self.totals.shape[1]] = self.totals
            self.totals = grown
        total: NDArray[np.float64] = self.totals[slot]
        return total

    def follow(self, running: RunningMean, state: States) -> None:
        """A state [hidden] of the position behind those known; it counts from `flush` on."""
        self._following.append((running, state))

    def flush(self) -> None:
        """Add up what a step has brought to `follow`, of all requests at once."""
        if not self._following:
            return
        slots = [running.slot for running, _ in self._following]
        self.totals[slots] += np.stack([state for _, state in self._following])
        for running, _ in self._following:
            running.until += 1
            if running.until % self.block_size == 0:
                running.block_sums.append(self.totals[running.slot].astype(np.float32))
        self._following = []

    def means(self, requests: Sequence[RunningMean]) -> list[Sum | None]:
        """[hidden] of each, or None before there is a state that counts."""
        counted = [running for running in requests if running.until > 1]
        if not counted:
            return [None] * len(requests)
        sums = self.totals[[running.slot for running in counted]]
        counts = [running.until - 1 for running in counted]
        for row, running in enumerate(counted):
            if blocks := running.blocks_before_window:
                sums[row] -= running.block_sums[blocks - 1]
                counts[row] = running.until - blocks * self.block_size
        rows = iter((sums / np.array(counts)[:, None]).astype(np.float32))
        return [next(rows) if running.until > 1 else None for running in requests]


class RunningMean(RequestObserver):
    """One request's sum over positions [0, until), and what it was at each block's end.

    window: of how many tokens, the latest, and those before them in their block, the mean is; None:
    of all.
    """

    __slots__ = ("_all", "_is_reported", "block_sums", "request_id", "slot", "until", "window")

    def __init__(
        self, running: RunningMeans, slot: int, request_id: str, *, is_reported: bool
    ) -> None:
        self._all = running
        self.slot = slot
        self.request_id = request_id
        self._is_reported = is_reported
        self.until = 0
        self.window: int | None = None
        self.block_sums: list[Sum] = []

    @property
    def blocks_before_window(self) -> int:
        """How many whole blocks the mean leaves out."""
        if self.window is None:
            return 0
        return max(0, self.until - self.window) // self._all.block_size

    def read(self, start: int, tokens: slice, out: StepOutput) -> None:
        """See `RequestObserver.read`; what it reads counts from `RunningMeans.flush` on."""
        if out.hidden_states is None:
            return
        if tokens.stop - tokens.start == 1 and self.until == start > 0:
            self._all.follow(self, out.hidden_states[tokens.start])
        else:
            self.add(start, out.hidden_states[tokens])

    def add(self, start: int, states: States) -> None:
        """States at positions from `start` on; those read already change nothing."""
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

    def resume(self, block_ids: Sequence[int]) -> None:
        """See `RequestObserver.resume`; blocks that it has read already change nothing."""
        until = len(block_ids) * self._all.block_size
        if until > self.until:
            sums = [self._all.published[block] for block in block_ids]
            self._all.total(self.slot, len(sums[-1]))[:] = sums[-1]
            self.block_sums = [*self.block_sums, *sums[len(self.block_sums) :]]
            self.until = until

    def publish(self, index: int, block_id: int) -> None:
        """See `RequestObserver.publish`."""
        self._all.published[block_id] = self.block_sums[index]

    def report(self, event: FinalEvent) -> FinalEvent:
        """See `RequestObserver.report`."""
        mean = self.mean() if self._is_reported else None
        return event if mean is None else replace(event, hidden=tuple(mean.tolist()))

    def close(self) -> None:
        """See `RequestObserver.close`."""
        self._all.close(self)

    def mean(self) -> Sum | None:
        """[hidden], or None before there is a state that counts."""
        return self._all.means([self])[0]
