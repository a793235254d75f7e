"""Steps that begin before the last one's results are there: who takes part, and who is void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from router_engine.config import SchedulerConfig
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.scheduling.plan import StepPlan
from tests.router_engine.scheduling.harness import BLOCK_SIZE, Drive, expected_tokens, fixed, routed

CONFIG = SchedulerConfig(max_step_tokens=16, max_running=4)
MIXTURE = {"sha256:a": 0.5}


def drive(config: SchedulerConfig = CONFIG, *, num_blocks: int = 64) -> Drive:
    return Drive(config, num_blocks=num_blocks, ahead=True)


def shapes(plans: Sequence[StepPlan]) -> list[tuple[bool, int]]:
    """Of each step: whether it was ahead, and its rows."""
    return [(plan.fed is not None, len(plan.rows)) for plan in plans]


def test_requests_that_decode_are_always_a_step_ahead() -> None:
    one = drive()
    one.add(fixed("a", [1, 2, 3], new=5, mixture=MIXTURE))
    one.add(fixed("b", [4, 5], new=3))
    one.drain()
    one.check_texts()
    assert shapes(one.plans) == [(False, 2), (True, 2), (True, 2), (True, 1), (True, 1)]


def test_a_row_whose_request_ends_by_a_stop_token_is_void() -> None:
    text = expected_tokens(fixed("a", [1, 2, 3], new=8))
    sampling = SamplingSpec(max_new_tokens=8, stop_token_ids=(text[3],))
    one = drive()
    one.add(fixed("a", [1, 2, 3], sampling=sampling))
    one.drain()
    one.check_texts()
    assert len(one.tokens["a"]) == text.index(text[3])
    assert one.pool.num_owned == 0


def test_who_comes_waits_for_no_more_than_the_step_that_runs() -> None:
    one = drive()
    one.add(fixed("a", [1, 2, 3], new=8))
    one.step()
    one.add(fixed("b", [4, 5], new=2))
    one.step()  # the one that was ahead
    one.step()
    assert [row.request_id for row in one.plans[2].rows] == ["a", "b"]
    assert one.plans[2].fed is None


def test_who_waits_without_a_chance_keeps_nobody_from_going_ahead() -> None:
    one = drive(replace(CONFIG, max_running=1))
    one.add(fixed("a", [1, 2, 3], new=6))
    one.add(fixed("b", [4, 5], new=2))
    for _ in range(4):
        one.step()
    assert shapes(one.plans) == [(False, 1)] + [(True, 1)] * 4


def test_nobody_gives_way_for_a_step_ahead() -> None:
    """Where blocks are short the planner says who does, with all results at hand."""
    one = drive(num_blocks=4)
    for index, name in enumerate("ab"):
        one.add(fixed(name, range(index, index + BLOCK_SIZE), new=9))
    one.drain()
    one.check_texts()
    assert one.scheduler.counters.preemptions > 0


@pytest.mark.parametrize(
    "request_",
    [
        fixed("a", [1, 2], sampling=SamplingSpec(max_new_tokens=4, repetition_penalty=1.2)),
        fixed("a", [1, 2], sampling=SamplingSpec(max_new_tokens=4, presence_penalty=0.5)),
        fixed("a", [1, 2], sampling=SamplingSpec(max_new_tokens=4, frequency_penalty=0.5)),
        fixed("a", [1, 2], sampling=SamplingSpec(max_new_tokens=4, report_entropy=True)),
        routed("a", [1, 2], routing=TokenRouting(router="test", every=1)),
        routed("a", [1, 2], routing=TokenRouting(router="test", every=4, context="recompute")),
        replace(fixed("a", [1, 2], mixture=MIXTURE), ensemble=(("sha256:b",),)),
        replace(fixed("a", [1, 2], mixture=MIXTURE), is_background=True),
        replace(fixed("a", [1, 2], mixture=MIXTURE), reports=Reports(gates=True)),
    ],
    ids=lambda made: str(made.sampling if made.sampling.is_penalised else made.routing),
)
def test_what_depends_on_results_waits_for_them(request_: EngineRequest) -> None:
    one = drive()
    one.add(request_)
    one.drain()
    assert not any(plan.fed for plan in one.plans)


def test_weights_that_are_known_for_longer_let_a_step_go_ahead() -> None:
    one = drive()
    one.add(routed("a", [1, 2], new=9, routing=TokenRouting(router="test", every=4)))
    one.drain()
    one.check_texts()
    assert sum(plan.fed is not None for plan in one.plans) == 6


@pytest.mark.parametrize("steps", [1, 2])
def test_one_that_is_cancelled_meanwhile_is_void(steps: int) -> None:
    one = drive()
    one.add(fixed("a", [1, 2, 3], new=9))
    one.add(fixed("b", [4, 5], new=9))
    for _ in range(steps):
        one.step()
    one.cancel("a")
    one.add(fixed("c", [1, 2, 3], new=4))
    one.drain()
    one.check_texts()


def test_one_that_computes_no_numbers_fails_alone() -> None:
    one = drive()
    one.add(fixed("a", [1, 2, 3], new=9))
    one.add(fixed("b", [4, 5], new=9))
    one.step()
    one.runner.spoilt.add("a")
    one.drain()
    one.check_texts()
    assert one.finals["a"].error is not None
    assert len(one.tokens["b"]) == 9
