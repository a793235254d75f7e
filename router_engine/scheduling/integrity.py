"""Checks what must hold between two steps of scheduler and block pool, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from router_engine.errors import EngineError
from router_engine.kv.block_pool import BlockPool
from router_engine.kv.block_table import blocks_for

if TYPE_CHECKING:
    from router_engine.scheduling.scheduler import Scheduler
    from router_engine.scheduling.state import RequestState


class IntegrityViolation(EngineError, AssertionError):  # noqa: N818 - it is no user's error
    """An invariant is broken: the engine has a bug. `violations` name the offenders."""

    def __init__(self, violations: list[str]) -> None:
        self.violations = violations
        super().__init__("; ".join(violations))


def check_integrity(scheduler: Scheduler, pool: BlockPool) -> None:
    """Raise IntegrityViolation with every broken invariant. Reads only; call it between steps."""
    violations = [
        *_block_places(pool),
        *_references(scheduler, pool),
        *_request_places(scheduler),
        *(problem for state in scheduler.live.values() for problem in _state(state, pool)),
    ]
    if violations:
        raise IntegrityViolation(violations)


def _block_places(pool: BlockPool) -> Iterator[str]:
    """free + owned + cached = all, each block in one place, and keys only where KV is."""
    owned = [block for block in range(pool.num_blocks) if pool.references(block) > 0]
    times = Counter([*pool.free, *pool.cached, *owned])
    wrong = [block for block in range(pool.num_blocks) if times[block] != 1]
    if wrong:
        yield f"blocks {wrong} are not in exactly one of free, cached and owned"
    keyed_free = [block for block in pool.free if block in pool.keys]
    if keyed_free:
        yield f"free blocks {keyed_free} have keys"
    keyless = [block for block in pool.cached if block not in pool.keys]
    if keyless:
        yield f"cached blocks {keyless} have no key"
    lost = [block for block, key in pool.keys.items() if pool.find(key) != block]
    if lost:
        yield f"the keys of blocks {lost} do not lead back to them"


def _references(scheduler: Scheduler, pool: BlockPool) -> Iterator[str]:
    held = Counter(
        block for state in scheduler.live.values() for block in state.block_table.block_ids
    )
    wrong = [b for b in range(pool.num_blocks) if held[b] != pool.references(b)]
    if wrong:
        yield f"blocks {wrong} have other reference counts than tables that hold them"


def _request_places(scheduler: Scheduler) -> Iterator[str]:
    """No request in two queues; every submitted request has ended or is live."""
    running = [state.request_id for state in scheduler.running]
    waiting = [state.request_id for state in scheduler.waiting]
    times = Counter([*running, *waiting])
    for request_id, state in scheduler.live.items():
        # Of an ensemble that waits its head alone is in the queue.
        places = ("running", "waiting") if state.head is state else ("running",)
        if times.pop(request_id, 0) != (state.status in places):
            yield f"request {request_id!r} is {state.status}, but its queues say otherwise"
        if (state.status == "running") != (request_id in running):
            yield f"request {request_id!r} is {state.status}, but running says otherwise"
        head = state.head
        if state.status != head.status or scheduler.live.get(head.request_id) is not head:
            yield f"request {request_id!r} is {state.status}, but its ensemble is not"
    if times:
        yield f"requests {sorted(times)} are queued, but not live"
    if len(running) > scheduler.config.max_running:
        yield f"{len(running)} requests run, {scheduler.config.max_running} may"
    counters = scheduler.counters
    if counters.submitted != counters.ended + len(scheduler.live):
        yield f"{counters.submitted} submitted, {counters.ended} ended, {len(scheduler.live)} live"


def _state(state: RequestState, pool: BlockPool) -> Iterator[str]:
    name, table = state.request_id, state.block_table
    if table.block_ids and state.status != "running":
        yield f"request {name!r} is {state.status}, but owns blocks {table.block_ids}"
    if len(set(table.block_ids)) != len(table):
        yield f"request {name!r} holds a block twice: {table.block_ids}"
    known_until = state.weights_history.known_until
    if not 0 <= state.num_computed <= min(len(state.tokens), table.capacity, known_until):
        yield (
            f"request {name!r} has {state.num_computed} computed of {len(state.tokens)} tokens "
            f"in {len(table)} blocks under weights known until {known_until}"
        )
    # A step ahead computes one token more than is known.
    if len(table) > blocks_for(len(state.tokens) + 1, table.block_size):
        yield f"request {name!r} holds {len(table)} blocks for {len(state.tokens)} tokens"
    full = min(state.num_computed, known_until) // table.block_size
    keys = state.block_keys.first(full, state.tokens, state.weights_history)
    for block, key in zip(table.block_ids, keys, strict=False):
        if pool.keys.get(block, key) != key:
            yield f"block {block} of request {name!r} is published under another content's key"
