"""What nobody waits for: behind all others, a little in each step, and never forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_engine.config import Policy, SchedulerConfig
from router_engine.request import EngineRequest
from router_engine.scheduling.plan import StepPlan
from tests.router_engine.scheduling.harness import Drive, fixed

CONFIG = SchedulerConfig(max_step_tokens=32, background_tokens=8, background_tokens_beside=2)


def background(name: str, length: int, new: int = 1) -> EngineRequest:
    return replace(fixed(name, range(length), new), is_background=True)


def tokens_of(plan: StepPlan | None, name: str) -> int:
    rows = plan.rows if plan is not None else ()
    return sum(len(row.token_ids) for row in rows if row.request_id == name)


@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_a_request_that_comes_later_has_the_step_to_itself_but_for_a_little(policy: Policy) -> None:
    drive = Drive(replace(CONFIG, policy=policy))
    drive.add(background("texts", 40))
    assert tokens_of(drive.step(), "texts") == 8
    drive.add(fixed("live", range(50, 80), 3, priority=7))
    plan = drive.step()
    assert (tokens_of(plan, "live"), tokens_of(plan, "texts")) == (30, 2)
    assert tokens_of(drive.step(), "texts") == 2  # beside a token that streams
    drive.drain()
    assert [row.request_id for row in drive.plans[1].rows] == ["live", "texts"]
    drive.check_texts()


def test_in_the_background_all_share_the_same_little() -> None:
    drive = Drive(CONFIG)
    for number in range(5):
        drive.add(background(f"text-{number}", 6))
    drive.add(fixed("live", range(50, 60), 4))
    while "live" in drive.scheduler.live:
        plan = drive.step()
        assert plan is not None
        assert plan.num_tokens - tokens_of(plan, "live") <= 2
    drive.drain()
    drive.check_texts()


def test_steps_are_short_again_while_a_request_waits_for_its_adapters() -> None:
    drive = Drive(CONFIG)
    drive.add(background("texts", 40))
    drive.add(fixed("live", range(50, 60), 2, mixture={"sha256:a": 1.0}), ready=False)
    assert tokens_of(drive.step(), "texts") == 2
    drive.cancel("live")
    assert tokens_of(drive.step(), "texts") == 8


def test_blocks_are_for_those_who_wait() -> None:
    drive = Drive(replace(CONFIG, max_running=1))
    drive.add(background("texts", 12))
    drive.step()
    drive.add(fixed("live", range(50, 60), 2))
    assert tokens_of(drive.step(), "live") == 10
    drive.drain()
    assert drive.finals["texts"].num_preemptions == 1
    drive.check_texts()


def test_under_endless_load_it_ends_all_the_same() -> None:
    drive = Drive(CONFIG)
    drive.add(background("texts", 20))
    for number in range(40):
        if "texts" in drive.finals:
            break
        drive.add(fixed(f"live-{number}", range(60 + number, 70 + number), 4))
        drive.step()
    assert "texts" in drive.finals
    assert drive.scheduler.service.served("") > 0
    drive.drain()
    drive.check_texts()


def test_what_it_is_served_counts_for_nobody_else() -> None:
    drive = Drive(CONFIG)
    drive.add(background("texts", 20))
    drive.drain()
    assert drive.scheduler.service.served("") == 0
