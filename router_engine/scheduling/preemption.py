"""Chooses who gives up its blocks; the KV is computed again later, under the same weights."""

from __future__ import annotations

from collections.abc import Iterable

from router_engine.scheduling.policy import OrderingPolicy, seniority
from router_engine.scheduling.state import RequestState


def victim_for_running(
    running: Iterable[RequestState], policy: OrderingPolicy, needy: RequestState
) -> RequestState | None:
    """The most junior owner of blocks that is junior to `needy`, which runs and needs blocks."""
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
