"""Fairness between adapter sets (virtual token counters), and nobody starves."""

from __future__ import annotations

from router_engine.config import SchedulerConfig
from router_engine.request import Context, TokenRouting
from router_engine.scheduling.fairness import PROMPT_TOKEN_COST, ServiceCounters
from tests.router_engine.scheduling.harness import Drive, fixed, routed

CONTEXTS: tuple[Context, ...] = ("keep", "recompute")
HEAVY, LIGHT = {"sha256:heavy": 1.0}, {"sha256:light": 1.0}


def finish_order(config: SchedulerConfig) -> list[str]:
    """40 requests of one adapter are in the queue before 4 of another come."""
    drive = Drive(config)
    for i in range(40):
        drive.add(fixed(f"heavy{i}", [i % 7, i % 5, i], 4, mixture=HEAVY))
    drive.step()
    for i in range(4):
        drive.add(fixed(f"light{i}", [i, i], 4, mixture=LIGHT))
    drive.drain()
    drive.check_texts()
    return list(drive.finals)


def test_a_heavy_adapter_does_not_starve_a_light_one() -> None:
    order = finish_order(SchedulerConfig(max_running=2, fairness="adapter"))
    assert max(order.index(f"light{i}") for i in range(4)) < 14


def test_without_fairness_the_order_is_that_of_arrival() -> None:
    order = finish_order(SchedulerConfig(max_running=2, fairness="none"))
    assert order == [f"heavy{i}" for i in range(40)] + [f"light{i}" for i in range(4)]


def test_backlogged_adapters_get_like_service() -> None:
    """Requests of one are 3 times as long as those of the other: it gets a third as many in."""
    drive = Drive(SchedulerConfig(max_running=1))
    for i in range(30):
        drive.add(fixed(f"long{i}", range(12), 12, mixture=HEAVY))
        drive.add(fixed(f"short{i}", range(4), 4, mixture=LIGHT))
    while len(drive.finals) < 28:
        drive.step()
    ended = [name.rstrip("0123456789") for name in drive.finals]
    # The prefix cache halves what the prompts cost, more so for the long ones.
    assert 2.0 <= ended.count("short") / ended.count("long") <= 4.0


def test_priority_comes_before_fairness() -> None:
    drive = Drive(SchedulerConfig(max_running=1, policy="priority"))
    for i in range(4):
        drive.add(fixed(f"heavy{i}", [i, i], 3, mixture=HEAVY, priority=0))
    drive.add(fixed("light", [1, 2], 3, mixture=LIGHT, priority=1))
    drive.drain()
    assert list(drive.finals)[-1] == "light"


def test_fifo_admits_a_large_request_while_small_ones_keep_coming() -> None:
    drive = Drive(SchedulerConfig(max_running=8), num_blocks=12)
    for i in range(6):
        drive.add(fixed(f"early{i}", [i], 6))
    drive.add(fixed("large", range(40), 4))
    for i in range(60):
        drive.add(fixed(f"small{i}", [i % 40], 2))
        drive.step()
        if "large" in drive.finals:
            break
    assert "large" in drive.finals
    assert list(drive.finals).index("large") < 20


def test_every_waiting_request_ends_within_a_bound() -> None:
    drive = Drive(SchedulerConfig(max_running=3, max_step_tokens=8), num_blocks=12)
    for i in range(50):
        drive.add(fixed(f"r{i}", range(i % 20 + 1), 4, mixture=HEAVY if i % 3 else LIGHT))
    drive.drain(max_steps=50 * 12)
    drive.check_texts()


def test_a_newcomer_is_lifted_to_the_least_served_waiting_one() -> None:
    counters = ServiceCounters()
    counters.enter("a", [])
    counters.charge_prompt("a", 100)
    counters.charge_generated("a", 50)
    counters.enter("b", ["a"])
    assert counters.served("a") == counters.served("b") == 200
    counters.charge_prompt("a", 7)
    counters.leave("b")
    counters.enter("c", ["a"])
    assert counters.served("c") == 207


def test_idle_time_takes_no_service_away() -> None:
    counters = ServiceCounters()
    counters.enter("a", [])
    counters.charge_prompt("a", 500)
    counters.enter("b", ["a"])
    counters.leave("a")
    counters.charge_prompt("b", 100)
    counters.enter("a", ["b"])
    assert (counters.served("a"), counters.served("b")) == (600, 600)


def test_into_an_empty_queue_one_is_lifted_to_who_left_last() -> None:
    counters = ServiceCounters()
    counters.enter("a", [])
    counters.charge_prompt("a", 80)
    counters.leave("a")
    counters.enter("b", [])
    assert counters.served("b") == 80


def test_forgetting_groups_changes_no_turn() -> None:
    """Groups under the floor are forgotten: they would be lifted to it when they come back."""
    counters = ServiceCounters()
    for i in range(3000):
        group = f"g{i}"
        counters.enter(group, [])
        counters.charge_prompt(group, 1)
        counters.leave(group)
    assert counters.served("g0") == 0
    counters.enter("g0", [])
    assert counters.served("g0") == 3000


def test_a_context_that_is_thrown_away_is_charged_again() -> None:
    """Who recomputes under new weights has the prompt's work done twice, and pays for it."""
    charged = {}
    for context in CONTEXTS:
        drive = Drive(SchedulerConfig())
        routing = TokenRouting("test", context=context)
        drive.add(routed("r", range(9), 4, routing=routing))
        drive.step()
        group = drive.scheduler.live["r"].turn.group
        before = drive.scheduler.service.served(group)
        drive.scheduler.set_weights("r", 10, (0.25, 3.0))
        charged[context] = drive.scheduler.service.served(group) - before
    assert charged == {"keep": 0, "recompute": 10 * PROMPT_TOKEN_COST}
