"""Who gives up blocks or a slot, for whom, and what becomes of it."""

from __future__ import annotations

import pytest

from router_engine.config import Policy, SchedulerConfig
from router_engine.request import TokenRouting
from router_engine.scheduling.plan import StepPlan
from tests.router_engine.scheduling.harness import Drive, fixed, routed


def ids(plan: StepPlan | None) -> list[str]:
    return [row.request_id for row in plan.rows] if plan is not None else []


def test_the_most_recent_request_gives_up_its_blocks() -> None:
    drive = Drive(SchedulerConfig(), num_blocks=6, prefix_cache=False)
    drive.add(fixed("a", range(7), 12))
    drive.add(fixed("b", range(7), 12))
    drive.drain()
    assert drive.finals["a"].num_preemptions == 0
    assert drive.finals["b"].num_preemptions > 0
    assert drive.scheduler.counters.preemptions == drive.finals["b"].num_preemptions
    drive.check_texts()


def test_a_preempted_request_starts_over_and_goes_before_newcomers() -> None:
    drive = Drive(SchedulerConfig(fairness="none"), num_blocks=6, prefix_cache=False)
    drive.add(fixed("a", range(7), 12))
    drive.add(fixed("b", range(7), 12))
    while not drive.scheduler.counters.preemptions:
        drive.step()
    assert ids(drive.plans[-1]) == ["a"]
    assert drive.scheduler.live["b"].num_computed == 0
    drive.add(fixed("late", [1, 2, 3], 2))
    assert [state.request_id for state in drive.scheduler.waiting] == ["b", "late"]
    before = len(drive.plans)
    drive.drain()
    order = [row for plan in drive.plans[before:] for row in plan.rows if row.request_id != "a"]
    assert order[0].request_id == "b"
    assert (order[0].start, order[0].needs_logits) == (0, True)  # its own text is known: one chunk
    drive.check_texts()


def test_a_preempted_request_finds_its_blocks_in_the_prefix_cache() -> None:
    drive = Drive(SchedulerConfig(policy="priority"), num_blocks=8)
    drive.add(fixed("a", range(12), 8))
    drive.step()
    drive.step()
    drive.add(fixed("urgent", range(20, 34), 5, priority=-1))
    drive.step()
    assert ids(drive.plans[-1]) == ["urgent"]
    drive.drain()
    resumed = next(p for p in drive.plans[3:] if "a" in ids(p))
    assert resumed.rows[-1].start > 0
    assert drive.finals["a"].num_cached_tokens == 0  # it found what it had computed itself
    drive.check_texts()


def test_nobody_comes_in_where_running_requests_would_soon_be_short_of_blocks() -> None:
    drive = Drive(SchedulerConfig(), num_blocks=5, prefix_cache=False)
    drive.add(fixed("a", range(10), 3))
    drive.add(fixed("b", range(8), 4))
    drive.add(fixed("c", [1], 1))
    assert ids(drive.step()) == ["a"]  # `b` would take the blocks that `a` may need next
    drive.drain()
    assert drive.scheduler.counters.preemptions == 0
    drive.check_texts()


def test_a_chunk_that_finds_no_blocks_waits_for_its_seniors() -> None:
    """`b` comes in while its 5 blocks are free; when it needs the 4th, `a` has grown into it."""
    drive = Drive(SchedulerConfig(max_step_tokens=2), num_blocks=9, prefix_cache=False)
    drive.add(fixed("a", range(9), 16))
    while "a" not in drive.tokens:
        drive.step()
    drive.add(fixed("b", range(20), 2))
    drive.add(fixed("c", [1], 1))
    plans = []
    while "b" not in drive.finals:
        plans.append(ids(drive.step()))
    assert plans[:15] == [["a", "b"]] * 12 + [["a"]] * 3
    assert not any("c" in plan for plan in plans[:-1])
    assert drive.scheduler.counters.preemptions == 0
    drive.drain()
    drive.check_texts()


def test_a_newcomer_takes_no_blocks_that_a_stalled_request_waits_for() -> None:
    """`r` gave 4 blocks back to compute all of its 17 tokens again, and `s` took what was spare."""
    drive = Drive(SchedulerConfig(fairness="none"), num_blocks=10, prefix_cache=False)
    drive.add(fixed("s", range(14), 10))
    routing = TokenRouting("test", every=1, context="recompute")
    drive.add(routed("r", range(16), 2, routing=routing))
    while len(drive.tokens["s"]) < 8:
        drive.step()
    drive.scheduler.set_weights("r", drive.asks.pop("r"), (7.0, 7.0))
    drive.add(fixed("c", [1], 1))
    assert [ids(drive.step()) for _ in range(2)] == [["s"], ["s"]]
    assert ids(drive.step())[0] == "r"
    assert drive.scheduler.counters.preemptions == 0
    drive.drain()


@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_only_the_priority_policy_displaces_running_requests(policy: Policy) -> None:
    drive = Drive(SchedulerConfig(policy=policy, max_running=1))
    drive.add(fixed("background", range(6), 6, priority=5))
    drive.step()
    drive.add(fixed("urgent", range(6), 3, priority=1))
    assert ids(drive.step()) == (["background"] if policy == "fifo" else ["urgent"])
    drive.drain()
    assert list(drive.finals) == (
        ["background", "urgent"] if policy == "fifo" else ["urgent", "background"]
    )
    drive.check_texts()


def test_priority_displaces_the_least_urgent_and_never_its_own_level() -> None:
    drive = Drive(SchedulerConfig(policy="priority", max_running=2))
    for name, priority in (("low", 9), ("mid", 5)):
        drive.add(fixed(name, range(4), 8, priority=priority))
    drive.step()
    drive.add(fixed("mid2", range(4), 2, priority=5))
    assert ids(drive.step()) == ["mid", "mid2"]
    drive.add(fixed("mid3", range(4), 2, priority=5))
    assert ids(drive.step()) == ["mid", "mid2"]
    drive.drain()
    assert list(drive.finals) == ["mid2", "mid3", "mid", "low"]


def test_an_urgent_prompt_goes_before_a_less_urgent_chunk() -> None:
    drive = Drive(SchedulerConfig(policy="priority", max_step_tokens=6))
    drive.add(fixed("long", range(30), 2, priority=5))
    drive.step()
    drive.add(fixed("urgent", range(4), 2, priority=1))
    plan = drive.step()
    assert plan is not None
    assert {row.request_id: len(row.token_ids) for row in plan.rows} == {"urgent": 4, "long": 2}
    drive.drain()
    drive.check_texts()


def test_a_less_urgent_decode_goes_before_an_urgent_prompt() -> None:
    """A stream is never held up by a prompt, of whatever level: it takes but one token."""
    drive = Drive(SchedulerConfig(policy="priority", max_step_tokens=4))
    drive.add(fixed("stream", range(2), 8, priority=5))
    drive.step()
    drive.add(fixed("urgent", range(8), 2, priority=1))
    plan = drive.step()
    assert plan is not None
    assert {row.request_id: len(row.token_ids) for row in plan.rows} == {"stream": 1, "urgent": 3}
    drive.drain()
    drive.check_texts()


def test_priority_runs_lower_numbers_first_and_ties_by_arrival() -> None:
    drive = Drive(SchedulerConfig(policy="priority", max_running=1))
    for name, priority in (("c", 3), ("a", 1), ("b", 2), ("a2", 1)):
        drive.add(fixed(name, [1, 2], 2, priority=priority))
    drive.drain()
    assert list(drive.finals) == ["a", "a2", "b", "c"]
