"""An order over requests: who is admitted first, and who gives up its blocks first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Protocol

from router_engine.config import Policy
from router_engine.scheduling.state import RequestState

_LAST = 1 << 40  # the level of background requests: behind any priority


class OrderingPolicy(Protocol):
    """Levels are strict, lower first; within a level fairness and arrival decide."""

    def level(self, state: RequestState) -> int: ...


class FifoPolicy:
    """By arrival; background requests behind all others."""

    def level(self, state: RequestState) -> int:
        return _raised(state, _LAST if state.request.is_background else 0)


class PriorityPolicy:
    """A level per priority. A waiting request may displace running ones of a later level."""

    def level(self, state: RequestState) -> int:
        return _raised(state, _LAST if state.request.is_background else state.request.priority)


def _raised(state: RequestState, level: int) -> int:
    """The level of a request, or that of those who overtook it too often (`WaitingQueue`)."""
    raised = state.turn.raised_to
    return level if raised is None else min(level, raised)


def make_policy(name: Policy) -> OrderingPolicy:
    return PriorityPolicy() if name == "priority" else FifoPolicy()


def seniority(policy: OrderingPolicy, state: RequestState) -> tuple[int, int]:
    """Sorts running requests: the most senior is never preempted, so there is always progress."""
    return policy.level(state), state.head.arrival  # equal within an ensemble


def queue_rank(policy: OrderingPolicy, state: RequestState) -> tuple[int, bool, int]:
    """Sorts waiting requests of one group: those that ran before go on before others start."""
    return policy.level(state), not state.turn.goes_on, state.arrival


def passed_too_often(
    policy: OrderingPolicy, behind: Iterable[RequestState], started: RequestState, most: int
) -> RequestState | None:
    """Count `started` for the one of `behind` that waits longest, if it came later than that.

    Returns that one where it was passed `most` times and would be passed again: it is to be raised
    to the level of `started`.
    """
    longest = min(behind, key=lambda one: one.arrival, default=None)
    if longest is None or longest.arrival > started.arrival:
        return None
    longest.turn.overtaken += 1
    is_next = longest.turn.goes_on and policy.level(longest) <= policy.level(started)
    return None if is_next or longest.turn.overtaken < most else longest


def in_turn(
    policy: OrderingPolicy, running: Iterable[RequestState], head: RequestState | None
) -> tuple[list[RequestState], list[RequestState]]:
    """Runnable ones that go before the head of the waiting queue, and those that go after it.

    Decodes go before chunks, so that a long prompt never holds up a stream, and chunks of a later
    level than the head's after it.
    """
    due = [
        (num_runnable > 1, *seniority(policy, state), state)
        for state in running
        if (num_runnable := state.num_runnable) > 0
    ]
    due.sort(key=itemgetter(0, 1, 2))
    level = math.inf if head is None else policy.level(head)
    before: list[RequestState] = []
    after: list[RequestState] = []
    for is_chunk, own_level, _, state in due:
        (after if is_chunk and own_level > level else before).append(state)
    return before, after


def victim_for_running(
    running: Iterable[RequestState], policy: OrderingPolicy, needy: RequestState
) -> RequestState | None:
    """The most junior owner of blocks that is junior to `needy`, which runs and needs blocks.

    What a victim had is computed again later, under the same weights.
    """
    rank = seniority(policy, needy)
    return _most_junior(
        (s for s in running if s.block_table.block_ids and seniority(policy, s) > rank), policy
    )


def victim_for_waiting(
    running: Iterable[RequestState], policy: OrderingPolicy, waiting: RequestState
) -> RequestState | None:
    """The most junior running request of a strictly later level than `waiting`."""
    level = policy.level(waiting)
    return _most_junior((s for s in running if policy.level(s) > level), policy)


def _most_junior(candidates: Iterable[RequestState], policy: OrderingPolicy) -> RequestState | None:
    return max(candidates, key=lambda state: seniority(policy, state), default=None)
