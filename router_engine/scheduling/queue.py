"""Owns the requests that could run and own no blocks, by group."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from router_engine.scheduling.fairness import BACKGROUND, Group, ServiceCounters
from router_engine.scheduling.policy import OrderingPolicy, passed_too_often, queue_rank
from router_engine.scheduling.state import RequestState


class WaitingQueue:
    """Picks by level, then those that ran before, then the least served group, then arrival.

    That order alone would let some wait without end. So whoever waits longest, and was overtaken
    `max_overtaken` times meanwhile by requests that came later, goes next in the earliest of their
    levels, and keeps that level until it ends.
    """

    def __init__(
        self, policy: OrderingPolicy, counters: ServiceCounters, max_overtaken: int
    ) -> None:
        self._policy = policy
        self._max_overtaken = max_overtaken
        self._counters = counters
        self._groups: dict[Group, list[RequestState]] = {}  # each sorted by queue_rank
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[RequestState]:
        for group in self._groups.values():
            yield from group

    def push(self, state: RequestState) -> None:
        if state.turn.group not in self._groups:
            self._counters.enter(state.turn.group, self._groups.keys())
            self._groups[state.turn.group] = []
        insort(self._groups[state.turn.group], state, key=self._rank)
        self._size += 1

    def remove(self, state: RequestState) -> None:
        group = self._groups[state.turn.group]
        index = bisect_left(group, self._rank(state), key=self._rank)
        if index == len(group) or group[index] is not state:
            raise ValueError(f"request {state.request_id!r} is not in the waiting queue")
        del group[index]
        self._size -= 1
        if not group:
            del self._groups[state.turn.group]
            self._counters.leave(state.turn.group)

    def head(self, *, background: bool = True) -> RequestState | None:
        """Who is next; None when nobody waits. `background`: whether such requests count."""
        groups = self._groups.items()
        heads = (states[0] for group, states in groups if background or group != BACKGROUND)
        return min(heads, key=self._turn, default=None)

    def start(self, state: RequestState, running: Iterable[RequestState]) -> None:
        """Take out who starts now, and count it for those whom it passes: here, and of `running`.

        Of these for the one in the middle of a text that came first.
        """
        self.remove(state)
        level = self._policy.level(state)
        late = passed_too_often(self._policy, self, state, self._max_overtaken)
        if late is not None:
            self.remove(late)
            late.turn.raised_to = level
            self.push(late)
        texts = (each for each in running if each.num_runnable > 1 and each.head is each)
        late = passed_too_often(self._policy, texts, state, self._max_overtaken)
        if late is not None:
            late.turn.raised_to = level

    def _rank(self, state: RequestState) -> tuple[int, bool, int]:
        return queue_rank(self._policy, state)

    def _turn(self, state: RequestState) -> tuple[int, bool, int, int]:
        level, is_new, arrival = self._rank(state)
        return level, is_new, self._counters.served(state.turn.group) if is_new else 0, arrival
