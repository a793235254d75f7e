"""Each invariant, broken on purpose, is found and names the offender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router_engine.config import SchedulerConfig
from router_engine.scheduling.integrity import IntegrityViolation, check_integrity
from router_engine.scheduling.state import RequestState, RequestStatus
from tests.router_engine.scheduling.harness import Drive, fixed


def traffic() -> Drive:
    """`run` computes, `wait` is in the queue."""
    drive = Drive(SchedulerConfig(max_running=1), num_blocks=8)
    drive.add(fixed("run", range(9), 4))
    drive.add(fixed("wait", range(9), 4))
    drive.step()
    return drive


def of(drive: Drive, request_id: str) -> RequestState:
    return drive.scheduler.live[request_id]


def free_an_owned_block(drive: Drive) -> None:
    drive.pool.release(of(drive, "run").block_table.block_ids[:1])


def lose_a_block(drive: Drive) -> None:
    drive.pool.allocate(1)


def share_without_a_reference(drive: Drive) -> None:
    of(drive, "wait").block_table.extend(of(drive, "run").block_table.block_ids[:1])


def compute_past_the_tokens(drive: Drive) -> None:
    of(drive, "run").num_computed = 11


def mark_running(drive: Drive) -> None:
    of(drive, "wait").status = RequestStatus.RUNNING


def mark_waiting(drive: Drive) -> None:
    of(drive, "run").status = RequestStatus.WAITING


def forget_an_end(drive: Drive) -> None:
    drive.scheduler.counters.ended += 1


def change_a_token_under_its_key(drive: Drive) -> None:
    of(drive, "run").tokens[0] = 99
    of(drive, "run").block_keys.reset()


def put_an_owned_block_among_the_free(drive: Drive) -> None:
    drive.pool._free.append(of(drive, "run").block_table.block_ids[0])


def cache_a_block_without_a_key(drive: Drive) -> None:
    drive.pool._cached[drive.pool._free.pop()] = None


def lose_a_key(drive: Drive) -> None:
    drive.pool._block_of.clear()


def hold_a_block_twice(drive: Drive) -> None:
    table = of(drive, "run").block_table
    drive.pool.share(table.block_ids[0])
    table.extend(table.block_ids[:1])


@pytest.mark.parametrize(
    ("break_it", "found"),
    [
        (free_an_owned_block, "have other reference counts"),
        (lose_a_block, "have other reference counts"),
        (share_without_a_reference, "request 'wait' is waiting, but owns blocks"),
        (compute_past_the_tokens, "request 'run' has 11 computed of 10 tokens"),
        (mark_running, "request 'wait' is running, but running says otherwise"),
        (mark_waiting, "request 'run' is waiting, but running says otherwise"),
        (forget_an_end, "2 submitted, 1 ended, 2 live"),
        (change_a_token_under_its_key, "of request 'run' is published under another"),
        (put_an_owned_block_among_the_free, "not in exactly one of free, cached and owned"),
        (put_an_owned_block_among_the_free, "free blocks .* have keys"),
        (cache_a_block_without_a_key, "have no key"),
        (lose_a_key, "do not lead back"),
        (hold_a_block_twice, "request 'run' holds a block twice"),
    ],
)
def test_what_is_broken_is_found(break_it: Callable[[Drive], None], found: str) -> None:
    drive = traffic()
    check_integrity(drive.scheduler, drive.pool)
    break_it(drive)
    with pytest.raises(IntegrityViolation, match=found) as caught:
        check_integrity(drive.scheduler, drive.pool)
    assert caught.value.violations


def test_a_violation_is_an_assertion_too() -> None:
    assert issubclass(IntegrityViolation, AssertionError)
