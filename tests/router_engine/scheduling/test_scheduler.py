"""Steps, budgets and endings of requests under fixed mixtures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router_engine.config import SchedulerConfig
from router_engine.errors import RequestRefusedError
from router_engine.events import FinalEvent, FinishReason, TokenEvent
from router_engine.kv.block_pool import BlockPool
from router_engine.request import SamplingSpec
from router_engine.scheduling.plan import SampledToken, StepOutput, StepPlan
from router_engine.scheduling.request_validation import NOT_FINITE
from router_engine.scheduling.scheduler import Scheduler
from router_engine.scheduling.step_builder import StepBuilder
from router_engine.sparse_weights import SparseWeights
from tests.router_engine.scheduling.harness import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Drive,
    expected_tokens,
    fixed,
)

FIRST = expected_tokens(fixed("", [1, 2, 3], 8))  # what the hash runner says to this prompt


def chunks(plan: StepPlan | None) -> dict[str, tuple[int, int]]:
    """(start, stop) by request."""
    assert plan is not None
    return {row.request_id: (row.start, row.stop) for row in plan.rows}


def test_a_long_prompt_runs_in_chunks_within_the_budget() -> None:
    drive = Drive(SchedulerConfig(max_step_tokens=8))
    drive.add(fixed("a", range(20), 2))
    plans = [drive.step() for _ in range(4)]
    assert [chunks(plan)["a"] for plan in plans] == [(0, 8), (8, 16), (16, 20), (20, 21)]
    assert [plan is not None and plan.rows[0].needs_logits for plan in plans] == [
        False,
        False,
        True,
        True,
    ]
    drive.drain()
    drive.check_texts()


def test_decodes_go_before_chunks() -> None:
    drive = Drive(SchedulerConfig(max_step_tokens=6))
    drive.add(fixed("a", [1, 2, 3], 8))
    drive.step()
    drive.add(fixed("b", range(20), 2))
    assert chunks(drive.step()) == {"a": (3, 4), "b": (0, 5)}
    drive.add(fixed("c", [7], 2))
    assert chunks(drive.step()) == {"a": (4, 5), "b": (5, 10)}


def test_rows_say_what_the_runner_needs() -> None:
    drive = Drive(SchedulerConfig())
    sampling = SamplingSpec(max_new_tokens=3, temperature=0.5, seed=4)
    drive.add(fixed("a", [1, 2, 3, 4, 5], mixture={"sha256:a": 0.5}, sampling=sampling))
    drive.step()
    plan = drive.scheduler.schedule()
    assert plan is not None
    (row,) = plan.rows
    (generated,) = drive.tokens["a"]
    assert (row.token_ids, row.start, row.stop, row.needs_logits) == ((generated,), 5, 6, True)
    assert row.weight_runs == ((1, SparseWeights.from_dense((0.5,))),)
    assert (row.adapters, row.combination, row.sampling) == (("sha256:a",), "sum", sampling)
    assert len(row.block_ids) == 2
    assert row.num_generated == 1
    assert tuple(row.prompt_token_ids) == (1, 2, 3, 4, 5)
    assert list(row.generated_token_ids) == [generated]


def test_max_running_bounds_who_owns_blocks() -> None:
    drive = Drive(SchedulerConfig(max_running=2))
    for i in range(4):
        drive.add(fixed(f"r{i}", [1, 2, i], 3))
    assert chunks(drive.step()).keys() == {"r0", "r1"}
    gauges = drive.scheduler.gauges
    assert (gauges.running, gauges.waiting) == (2, 2)
    drive.drain()
    drive.check_texts()


def test_length_ends_a_request_with_its_counts() -> None:
    drive = Drive(SchedulerConfig())
    drive.now = 5.0
    drive.add(fixed("a", [1, 2, 3], 4))
    drive.now = 7.5
    drive.drain()
    assert drive.tokens["a"] == FIRST[:4]
    assert drive.finals["a"] == FinalEvent(
        "a",
        FinishReason.LENGTH,
        num_prompt_tokens=3,
        num_generated_tokens=4,
        queue_seconds=2.5,
    )


def test_the_models_length_ends_a_request() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [5] * (MAX_MODEL_LEN - 2), 10))
    drive.drain()
    assert drive.finals["a"].reason is FinishReason.LENGTH
    assert drive.finals["a"].num_generated_tokens == 2


def test_a_stop_token_ends_a_request_and_is_no_part_of_it() -> None:
    drive = Drive(SchedulerConfig())
    sampling = SamplingSpec(max_new_tokens=8, stop_token_ids=(FIRST[2],))
    drive.add(fixed("a", [1, 2, 3], sampling=sampling))
    drive.drain()
    assert drive.tokens["a"] == FIRST[:2]
    final = drive.finals["a"]
    assert (final.reason, final.stop_token_id) == (FinishReason.STOP_TOKEN, FIRST[2])
    assert final.num_generated_tokens == 2


def test_a_stop_token_below_min_new_tokens_is_text() -> None:
    drive = Drive(SchedulerConfig())
    sampling = SamplingSpec(max_new_tokens=5, min_new_tokens=4, stop_token_ids=(FIRST[2],))
    drive.add(fixed("a", [1, 2, 3], sampling=sampling))
    drive.drain()
    assert drive.tokens["a"] == FIRST[:5]


def test_requests_that_wait_for_adapters_do_not_block_others() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("slow", [1, 2], 2, mixture={"sha256:a": 1.0}), ready=False)
    assert not drive.scheduler.has_runnable
    assert drive.step() is None
    drive.add(fixed("base", [3, 4], 2))
    assert chunks(drive.step()) == {"base": (0, 2)}
    assert drive.scheduler.gauges.waiting_for_adapters == 1
    drive.scheduler.adapters_ready("slow")
    drive.scheduler.adapters_ready("slow")
    assert chunks(drive.step()).keys() == {"base", "slow"}
    drive.drain()
    drive.check_texts()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_request_can_be_cancelled_at_any_point(steps: int) -> None:
    drive = Drive(SchedulerConfig(max_step_tokens=4))
    drive.add(fixed("a", range(10), 4))
    for _ in range(steps):
        drive.step()
    drive.cancel("a")
    assert drive.finals["a"].reason is FinishReason.CANCELLED
    assert drive.scheduler.cancel("a") is None
    assert drive.pool.num_owned == 0
    assert [request.request_id for request in drive.scheduler.take_finished()] == ["a"]
    assert drive.scheduler.take_finished() == []


def test_a_row_cancelled_in_flight_is_void_and_the_others_are_not() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2, 3], 4))
    drive.add(fixed("b", [4, 5, 6], 4))
    drive.step(cancelled_in_flight=["a"])
    assert drive.tokens["a"] == []
    assert len(drive.tokens["b"]) == 1
    drive.drain()
    drive.check_texts()


def test_a_row_in_flight_is_not_that_of_a_later_request_of_its_id() -> None:
    drive = Drive(SchedulerConfig())
    drive.scheduler.add(fixed("a", [1, 2, 3], 4))
    plan = drive.scheduler.schedule()
    assert plan is not None
    drive.scheduler.cancel("a")
    drive.scheduler.add(fixed("a", [4, 5], 4))
    assert drive.scheduler.update(plan, drive.runner.run(plan)) == []
    assert drive.scheduler.live["a"].num_computed == 0
    drive.check()


def test_a_chunk_taken_out_of_a_step_gives_its_tokens_back() -> None:
    drive = Drive(SchedulerConfig())
    drive.scheduler.add(fixed("a", [1, 2, 3], 4))
    state = drive.scheduler.live["a"]
    draft = StepBuilder(8, 0)
    draft.add(state, draft.chunk_stop(state))
    assert draft.tokens_left == 5
    draft.discard(state)
    draft.discard(state)
    assert draft.tokens_left == 8
    assert draft.plan() is None


def test_a_failed_request_ends_with_its_reason() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1], 2, mixture={"sha256:a": 1.0}), ready=False)
    final = drive.scheduler.fail("a", FinishReason.FAILED, "adapter sha256:a: truncated")
    assert final is not None
    assert (final.reason, final.error) == (FinishReason.FAILED, "adapter sha256:a: truncated")
    drive.check()


def test_logits_that_are_not_finite_fail_one_request() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2], 2))
    drive.add(fixed("b", [3, 4], 2))
    plan = drive.scheduler.schedule()
    assert plan is not None
    out = StepOutput((SampledToken(0, math.nan), SampledToken(5, -0.5)))
    first, second = drive.scheduler.update(plan, out)
    assert isinstance(first, FinalEvent)
    assert first.reason is FinishReason.FAILED
    assert "not finite" in str(first.error)
    assert second == TokenEvent("b", 5, -0.5)
    drive.check()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_numbers_that_are_none_fail_their_request_before_others_find_its_blocks(at: int) -> None:
    """In a chunk that samples nothing, too; what chunks before it have published is taken back."""
    drive = Drive(SchedulerConfig(max_step_tokens=BLOCK_SIZE + 1))
    drive.add(fixed("b", [30], 6))
    drive.step()
    drive.add(fixed("a", range(1, 3 * BLOCK_SIZE), 2))
    for _ in range(at):
        drive.step()
        assert drive.pool.keys
    plan = drive.scheduler.schedule()
    assert plan is not None
    out = drive.runner.run(plan)
    finite = np.ones(plan.num_tokens, dtype=np.bool_)
    (spoilt,) = (tokens for row, tokens in plan.parts if row.request_id == "a")
    finite[spoilt.start] = False
    events = drive.scheduler.update(plan, replace(out, finite=finite))
    (final,) = (event for event in events if isinstance(event, FinalEvent))
    assert (final.request_id, final.reason, final.error) == ("a", FinishReason.FAILED, NOT_FINITE)
    assert [event.request_id for event in events if isinstance(event, TokenEvent)] == ["b"]
    assert list(drive.scheduler.live) == ["b"]
    assert set(drive.pool.keys) <= set(drive.scheduler.live["b"].block_table.block_ids)
    drive.check()


def test_a_best_token_that_is_no_number_fails_its_request() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2], 2))
    plan = drive.scheduler.schedule()
    assert plan is not None
    out = StepOutput((SampledToken(0, -0.1, ((0, -0.1), (1, -math.inf))),))
    (final,) = drive.scheduler.update(plan, out)
    assert isinstance(final, FinalEvent)
    assert final.error == NOT_FINITE


def test_weights_are_reported_only_on_request() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2], 2, mixture={"sha256:a": 0.5}))
    drive.drain()
    assert drive.weights["a"] == [(), ()]


def test_a_second_request_of_a_live_id_is_an_error() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2], 2))
    with pytest.raises(RequestRefusedError, match="'a' is live"):
        drive.scheduler.add(fixed("a", [3], 2))
    drive.drain()
    assert drive.scheduler.add(fixed("a", [3], 2)) is None


def test_a_refused_request_never_was_live() -> None:
    drive = Drive(SchedulerConfig(), num_blocks=4)
    final = drive.add(fixed("a", range(10), 4 * BLOCK_SIZE))
    assert final is not None
    assert final.reason is FinishReason.REFUSED
    assert "whole cache holds 16" in str(final.error)
    assert final.num_prompt_tokens == 10
    assert not drive.scheduler.live
    assert drive.scheduler.take_finished() == []


def test_the_largest_request_that_fits_runs() -> None:
    drive = Drive(SchedulerConfig(), num_blocks=4)
    drive.add(fixed("a", range(10), 7))  # the 17th token needs no KV
    drive.drain()
    assert len(drive.tokens["a"]) == 7


def test_an_output_of_another_plan_is_an_error() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", [1, 2], 2))
    plan = drive.scheduler.schedule()
    assert plan is not None
    with pytest.raises(ValueError, match="0 samples for 1 rows"):
        drive.scheduler.update(plan, StepOutput(()))


@pytest.mark.parametrize(
    "config",
    [
        SchedulerConfig(max_step_tokens=0),
        SchedulerConfig(max_running=0),
        SchedulerConfig(max_overtaken=0),
    ],
)
def test_a_step_must_hold_something(config: SchedulerConfig) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Scheduler(config, BlockPool(1), block_size=4, max_model_len=8)


def test_counters_and_gauges_add_up() -> None:
    drive = Drive(SchedulerConfig(max_running=1))
    drive.add(fixed("a", [1, 2, 3], 3))
    drive.add(fixed("b", [1, 2, 3], 3))
    drive.drain()
    counters = drive.scheduler.counters
    assert (counters.submitted, counters.ended) == (2, 2)
    assert (counters.prompt_tokens, counters.generated_tokens) == (6, 6)
    assert drive.scheduler.gauges.running == 0


def test_the_prefix_cache_is_counted() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", range(10), 1))
    drive.drain()
    drive.add(fixed("b", range(10), 1))
    drive.drain()
    assert drive.finals["a"].num_cached_tokens == 0
    assert drive.finals["b"].num_cached_tokens == 2 * BLOCK_SIZE
    prefix = drive.scheduler.kv_blocks.prefix
    assert (prefix.queried, prefix.hit) == (20, 8)
    assert drive.scheduler.counters.prompt_tokens == 10 + 2
    drive.check_texts()
