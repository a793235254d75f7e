"""Nobody waits without end for a turn or for blocks, under any order.

`tests/router_engine/test_starvation_of_adapters.py` has the same for rows of adapters.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_engine.config import Policy, SchedulerConfig
from tests.router_engine.scheduling.harness import Drive, fixed

CONFIG = SchedulerConfig(
    max_running=4, max_step_tokens=16, max_overtaken=4, background_tokens_beside=4
)


def _overtakers(drive: Drive, name: str, asked: int) -> int:
    """How many of `asked` that come one a step, later, end before `name` does."""
    for number in range(asked):
        drive.add(fixed(f"later {number}", [number % 40, *range(6)], 4))
        drive.step()
        if name in drive.finals:
            return number
    raise AssertionError(f"{name} waits still")


@pytest.mark.parametrize("running", [1, 2, 8])
def test_a_late_priority_gets_its_turn(running: int) -> None:
    config = replace(CONFIG, policy="priority", max_running=running)
    drive = Drive(config)
    for number in range(running + 4):
        drive.add(fixed(f"first {number}", [number, *range(6)], 4))
    drive.add(fixed("late", range(9), 4, priority=7))
    _overtakers(drive, "late", 100)
    ended = list(drive.finals).index("late")
    assert ended <= running + 4 + config.max_overtaken + running
    drive.drain()
    drive.check_texts()


@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_the_background_gets_its_turn_behind_a_queue_that_never_ends(policy: Policy) -> None:
    drive = Drive(replace(CONFIG, policy=policy, max_running=2))
    for number in range(6):
        drive.add(fixed(f"first {number}", [number, *range(6)], 4))
    drive.add(replace(fixed("texts", range(20), 1), is_background=True))
    _overtakers(drive, "texts", 200)
    drive.drain()
    drive.check_texts()


def test_one_in_the_background_that_waits_for_its_tokens_holds_up_nobody() -> None:
    """The first takes all tokens of the background for many steps: who is next goes on."""
    drive = Drive(replace(CONFIG, max_running=8, background_tokens=1, background_tokens_beside=1))
    for name in ("first", "second"):
        drive.add(replace(fixed(name, range(40), 1), is_background=True))
    for number in range(60):
        drive.add(fixed(f"live {number}", [number % 40], 1))
        drive.step()
    assert sum(name.startswith("live") for name in drive.finals) > 50
    drive.drain()
    drive.check_texts()


@pytest.mark.parametrize("policy", ["fifo", "priority"])
@pytest.mark.parametrize("priority", [0, 5])
def test_a_long_prompt_finds_its_blocks_beside_short_ones(policy: Policy, priority: int) -> None:
    """It needs all blocks but one, and is of a later level, too."""
    config = replace(CONFIG, policy=policy, max_running=8, max_step_tokens=8)
    drive = Drive(config, num_blocks=12, prefix_cache=False)
    for number in range(6):
        drive.add(fixed(f"first {number}", [number], 6))
    drive.add(fixed("long", range(40), 4, priority=priority))
    _overtakers(drive, "long", 300)
    drive.drain()
    drive.check_texts()


def test_one_that_runs_is_not_starved_of_tokens_by_new_texts() -> None:
    """A long text of a late level, admitted while nobody else was there."""
    drive = Drive(replace(CONFIG, policy="priority", max_step_tokens=8, max_running=8))
    drive.add(fixed("long", range(40), 2, priority=9))
    drive.step()
    for number in range(200):
        drive.add(fixed(f"text {number}", [number % 40, *range(12)], 1))
        drive.step()
        if "long" in drive.finals:
            break
    assert "long" in drive.finals
    drive.drain()
    drive.check_texts()
