"""Owns the requests that could run and own no blocks, by group."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from router_engine.scheduling.fairness import Group, ServiceCounters
from router_engine.scheduling.policy import OrderingPolicy, queue_rank
from router_engine.scheduling.state import RequestState


class WaitingQueue:
    """Picks by level, then those that ran before, then the least served group, then arrival."""

    def __init__(self, policy: OrderingPolicy, counters: ServiceCounters) -> None:
        self._policy = policy
        self._counters = counters
        self._groups: dict[Group, list[RequestState]] = {}  # each sorted by queue_rank
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[RequestState]:
        for group in self._groups.values():
            yield from group

    def push(self, state: RequestState) -> None:
        if state.group not in self._groups:
            self._counters.enter(state.group, self._groups.keys())
            self._groups[state.group] = []
        insort(self._groups[state.group], state, key=self._rank)
        self._size += 1

    def remove(self, state: RequestState) -> None:
        group = self._groups[state.group]
        index = bisect_left(group, self._rank(state), key=self._rank)
        if index == len(group) or group[index] is not state:
            raise ValueError(f"request {state.request_id!r} is not in the waiting queue")
        del group[index]
        self._size -= 1
        if not group:
            del self._groups[state.group]
            self._counters.leave(state.group)

    def head(self) -> RequestState | None:
        """Who is next; None when nobody waits."""
        heads = (group[0] for group in self._groups.values())
        return min(heads, key=self._turn, default=None)

    def _rank(self, state: RequestState) -> tuple[int, bool, int]:
        return queue_rank(self._policy, state)

    def _turn(self, state: RequestState) -> tuple[int, bool, int, int]:
        level, is_new, arrival = self._rank(state)
        return level, is_new, self._counters.served(state.group) if is_new else 0, arrival
