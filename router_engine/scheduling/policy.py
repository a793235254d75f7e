"""Who goes first: an order over requests, for admission and for preemption."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from router_engine.config import Policy
from router_engine.scheduling.state import RequestState


class OrderingPolicy(Protocol):
    """Levels are strict, lower first; within a level fairness and arrival decide."""

    def level(self, state: RequestState) -> int: ...


class FifoPolicy:
    """One level: by arrival."""

    def level(self, state: RequestState) -> int:
        return 0


class PriorityPolicy:
    """A level per priority. A waiting request may displace running ones of a later level."""

    def level(self, state: RequestState) -> int:
        return state.request.priority


def make_policy(name: Policy) -> OrderingPolicy:
    return PriorityPolicy() if name == "priority" else FifoPolicy()


def seniority(policy: OrderingPolicy, state: RequestState) -> tuple[int, int]:
    """Sorts running requests: the most senior is never preempted, so there is always progress."""
    return policy.level(state), state.head.arrival  # equal within an ensemble


def queue_rank(policy: OrderingPolicy, state: RequestState) -> tuple[int, bool, int]:
    """Sorts waiting requests of one group: those that ran before go on before others start."""
    return policy.level(state), not state.admitted, state.arrival


def in_turn(
    policy: OrderingPolicy, running: Iterable[RequestState], head: RequestState | None
) -> tuple[list[RequestState], list[RequestState]]:
    """Runnable ones that go before the head of the waiting queue, and those that go after it.

    Decodes go before chunks, so that a long prompt never holds up a stream, and chunks of a later
    level than the head's after it.
    """
    turn = sorted(
        (state for state in running if state.is_runnable),
        key=lambda state: (state.num_runnable > 1, *seniority(policy, state)),
    )
    if head is None:
        return turn, []
    level = policy.level(head)
    late = {id(s) for s in turn if s.num_runnable > 1 and policy.level(s) > level}
    return [s for s in turn if id(s) not in late], [s for s in turn if id(s) in late]
