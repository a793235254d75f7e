"""Ensembles: members come in, wait for each other, give way and end together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_engine.config import SchedulerConfig
from router_engine.errors import RequestRefusedError
from router_engine.events import FinalEvent, FinishReason
from router_engine.request import EngineRequest, LayerRouting, TokenRouting
from router_engine.scheduling.plan import StepPlan
from router_engine.scheduling.request_validation import Limits, refusal
from tests.router_engine.scheduling.harness import Drive, expected_tokens, fixed

NAMES = ("e", "e#1", "e#2")


def ensemble(prompt: int = 6, new: int = 4) -> EngineRequest:
    """Three members with one adapter each."""
    one = fixed("e", range(1, prompt + 1), new, mixture={"sha256:a": 1.0})
    return replace(one, ensemble=(("sha256:b",), ("sha256:c",)))


def ids(plan: StepPlan | None) -> tuple[str, ...]:
    return () if plan is None else tuple(row.request_id for row in plan.rows)


def drawing(plan: StepPlan | None) -> tuple[str, ...]:
    return () if plan is None else tuple(row.request_id for row in plan.sampling_rows)


def test_a_member_that_has_its_logits_waits_for_the_others() -> None:
    """Budgets of 8: a prompt of 6 fits once and a bit; the last row of the last member draws."""
    drive = Drive(SchedulerConfig(max_step_tokens=8))
    drive.add(ensemble())
    plans = [drive.step() for _ in range(4)]
    assert [ids(plan) for plan in plans] == [("e", "e#1"), ("e#1", "e#2"), ("e#2",), NAMES]
    assert [drawing(plan) for plan in plans] == [(), (), ("e#2",), ("e#2",)]
    first = plans[0]
    assert first is not None
    assert [
        row.ensemble_member is not None and row.ensemble_member.member for row in first.rows
    ] == [0, False]
    drive.drain()
    drive.check_texts()


def test_one_final_event_and_tokens_of_one_text() -> None:
    drive = Drive(SchedulerConfig())
    request = ensemble()
    drive.add(request)
    drive.drain()
    assert list(drive.finals) == ["e"]
    assert drive.tokens == {"e": expected_tokens(request)}
    assert drive.tokens["e"] != expected_tokens(replace(request, ensemble=()))
    assert [ended.request_id for ended in drive.scheduler.take_finished()] == ["e"]
    assert drive.scheduler.counters.generated_tokens == 4


def test_members_come_in_together_or_not_at_all() -> None:
    """Four sequences may run, and two do: the ensemble of three waits for one to end."""
    drive = Drive(SchedulerConfig(max_running=4))
    for name, new in (("a", 2), ("b", 8)):
        drive.add(fixed(name, [1, 2], new))
    drive.step()
    drive.add(ensemble())
    assert ids(drive.step()) == ("a", "b")
    assert ids(drive.step()) == ("b", *NAMES)
    assert drive.scheduler.gauges.running == 4


def test_members_give_way_together() -> None:
    """The senior takes the last block: all three start over, and their text is the same."""
    drive = Drive(SchedulerConfig(), num_blocks=9, prefix_cache=False)
    drive.add(fixed("senior", range(10, 17), 9))
    drive.add(ensemble(prompt=6, new=6))
    assert ids(drive.step()) == ("senior", *NAMES)
    drive.drain()
    drive.check_texts()
    assert drive.finals["e"].num_preemptions == drive.scheduler.counters.preemptions == 1
    assert drive.finals["senior"].num_preemptions == 0


def test_a_senior_ensemble_displaces_juniors_and_never_itself() -> None:
    """It comes to fill the pool to the last block: three members of three blocks."""
    drive = Drive(SchedulerConfig(), num_blocks=9, prefix_cache=False)
    drive.add(ensemble(prompt=4, new=8))
    drive.add(fixed("junior", [1, 2], 6))
    drive.drain()
    drive.check_texts()
    assert drive.finals["e"].num_preemptions == 0
    assert drive.finals["junior"].num_preemptions > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_end_of_one_is_the_end_of_all(name: str, steps: int) -> None:
    drive = Drive(SchedulerConfig(max_step_tokens=5))
    drive.add(ensemble())
    for _ in range(steps):
        drive.step()
    drive.step(cancelled_in_flight=[name])
    assert drive.finals["e"].reason is FinishReason.CANCELLED
    assert not drive.scheduler.live
    assert drive.pool.num_owned == 0


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_in_one_member_fail_the_ensemble_once(name: str) -> None:
    drive = Drive(SchedulerConfig())
    drive.add(ensemble())
    plan = drive.scheduler.schedule()
    assert ids(plan) == NAMES
    assert plan is not None
    finite = np.ones(plan.num_tokens, dtype=np.bool_)
    for row, tokens in plan.parts:
        finite[tokens] = row.request_id != name
    (final,) = drive.scheduler.update(plan, replace(drive.runner.run(plan), finite=finite))
    assert isinstance(final, FinalEvent)
    assert (final.request_id, final.reason) == ("e", FinishReason.FAILED)
    assert (drive.pool.num_owned, dict(drive.pool.keys)) == (0, {})
    assert not drive.scheduler.live
    drive.check()


def test_service_is_that_of_all_members() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(ensemble())
    drive.add(fixed("one", range(1, 7), 4, mixture={"sha256:z": 1.0}))
    drive.drain()
    served = drive.scheduler.service.served
    assert served("sha256:a") == 3 * served("sha256:z") > 0


def test_ids_of_members_are_taken() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(ensemble())
    with pytest.raises(RequestRefusedError, match="'e#1' is live"):
        drive.scheduler.add(fixed("e#1", [1]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ensemble": (("sha256:b",),) * 4}, "ensemble has 5 members: 16 are the most, and 4"),
        ({"ensemble": (("sha256:b", "sha256:c"),)}, "a member of 2 adapters: each needs as many"),
        ({"prompt_token_ids": tuple(range(12))}, "for each of 3 members: the whole cache holds 40"),
        (
            {"weights": (), "routing": TokenRouting("similarity")},
            "ensemble is given with a router",
        ),
        (
            {"weights": (), "layer_routing": LayerRouting("arrow")},
            "ensemble is given with a router",
        ),
    ],
)
def test_what_cannot_run_is_refused(change: dict[str, Any], reason: str) -> None:
    limits = Limits(max_model_len=100, block_size=4, num_blocks=10, max_running=4)
    assert refusal(ensemble(), limits) is None
    said = refusal(replace(ensemble(), **change), limits)
    assert said is not None
    assert reason in said
