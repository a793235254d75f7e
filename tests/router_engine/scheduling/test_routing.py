"""Weights that come while the text grows: which pass runs under which of them."""

from __future__ import annotations

import pytest

from router_engine.config import SchedulerConfig
from router_engine.errors import RouterError
from router_engine.events import FinishReason
from router_engine.request import Context, EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.scheduling.plan import PlannedRow
from tests.router_engine.scheduling.harness import Drive, Weights, fixed, routed

KEEP_2 = TokenRouting("test", every=2)
PROMPT = (1, 2, 3, 4, 5)


def by_position(rows: list[PlannedRow]) -> dict[int, Weights]:
    """Weights that each position ran under, last run."""
    found: dict[int, Weights] = {}
    for row in rows:
        weights = [w.dense for length, w in row.weight_runs for _ in range(length)]
        found.update(zip(range(row.start, row.stop), weights, strict=True))
    return found


def rows_of(drive: Drive, request_id: str) -> list[PlannedRow]:
    return [row for plan in drive.plans for row in plan.rows if row.request_id == request_id]


def test_a_request_waits_for_its_first_weights() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, routing=KEEP_2), ready=False)
    drive.scheduler.adapters_ready("a")
    assert drive.step() is None
    assert drive.scheduler.gauges.waiting_for_weights == 1
    drive.scheduler.set_weights("a", len(PROMPT), (0.25, 0.75))
    assert drive.step() is not None
    assert by_position(rows_of(drive, "a")) == dict.fromkeys(range(5), (0.25, 0.75))


def test_weights_before_adapters_are_kept() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, routing=KEEP_2), ready=False)
    drive.answer("a")
    assert drive.step() is None
    drive.scheduler.adapters_ready("a")
    assert drive.step() is not None


def test_new_weights_hold_from_the_pass_over_the_last_token_they_saw() -> None:
    """every = 2, prompt of 5: tokens 0, 1 are yielded under W0, 2 and 3 under W2, 4 under W4."""
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 5, routing=KEEP_2), ready=False)
    drive.scheduler.adapters_ready("a")
    given: dict[int, Weights] = {5: (0.0, 1.0), 7: (0.5, 0.5), 9: (1.0, 0.0)}
    for num_tokens, weights in given.items():
        assert drive.asks.pop("a") == num_tokens
        drive.scheduler.set_weights("a", num_tokens, weights)
        while drive.step():
            pass
    w0, w2, w4 = given.values()
    assert drive.weights["a"] == [w0, w0, w2, w2, w4]
    assert by_position(rows_of(drive, "a")) == {
        **dict.fromkeys(range(6), w0),  # the prompt, and token 0
        **dict.fromkeys(range(6, 8), w2),  # from the last token of a text of 7
        8: w4,
    }


def test_with_a_lag_weights_hold_later_and_the_passes_between_do_not_wait() -> None:
    """lag = 2, prompt of 5: tokens 0, 1, 2 are yielded under W of the prompt, 3 under W of 6."""
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 6, routing=TokenRouting("test", lag=2)), ready=False)
    drive.scheduler.adapters_ready("a")
    given: dict[int, Weights] = {5: (0.0, 1.0), 6: (0.5, 0.5), 7: (1.0, 0.0), 8: (0.2, 0.8)}
    drive.asks.pop("a")
    drive.scheduler.set_weights("a", 5, given[5])
    drive.run_until_stuck()
    assert len(drive.tokens["a"]) == 3  # without a further answer
    for num_tokens in (6, 7, 8):
        drive.scheduler.set_weights("a", num_tokens, given[num_tokens])
        drive.run_until_stuck()
    w5, w6, w7, w8 = given.values()
    assert drive.weights["a"] == [w5, w5, w5, w6, w7, w8]
    assert drive.texts["a"] == [*PROMPT, *drive.tokens["a"][:3]]  # no question without use


def test_answers_must_come_in_the_order_of_the_questions() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 6, routing=TokenRouting("test", lag=3)))
    drive.run_until_stuck()
    with pytest.raises(RouterError, match="did not ask for weights from 7 tokens"):
        drive.scheduler.set_weights("a", 7, (0.0, 1.0))


@pytest.mark.parametrize(("every", "lag"), [(1, 1), (1, 3), (3, 1), (2, 5)])
def test_any_lag_gives_the_text_of_the_request_alone(every: int, lag: int) -> None:
    drive = Drive(SchedulerConfig(max_running=2), num_blocks=12)
    for index in range(4):
        routing = TokenRouting("test", every=every, lag=lag)
        drive.add(routed(f"r{index}", (*PROMPT, index), 12, routing=routing))
    drive.drain()
    drive.check_texts()


def test_a_row_that_waits_for_weights_sits_out_while_others_run() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 4, routing=TokenRouting("test")))
    drive.add(fixed("b", [7, 8], 6))
    drive.step()
    for _ in range(3):
        plan = drive.step()
        assert plan is not None
        assert [row.request_id for row in plan.rows] == ["b"]
    assert drive.scheduler.gauges.waiting_for_weights == 1
    drive.answer("a")
    plan = drive.step()
    assert plan is not None
    assert {row.request_id for row in plan.rows} == {"a", "b"}
    drive.drain()
    drive.check_texts()


def test_nothing_is_runnable_while_all_who_run_wait_for_weights() -> None:
    """The one in the queue has no slot: whoever drives the engine may sleep until an answer."""
    drive = Drive(SchedulerConfig(max_running=1))
    drive.add(routed("a", PROMPT, 6, routing=KEEP_2))
    drive.add(fixed("b", [7, 8], 6))
    scheduler = drive.scheduler
    drive.run_until_stuck()
    stuck = scheduler.has_runnable
    drive.answer("a")
    answered = scheduler.has_runnable
    drive.run_until_stuck()
    stuck_again = scheduler.has_runnable
    drive.cancel("a")
    assert (stuck, answered, stuck_again, scheduler.has_runnable) == (False, True, False, True)
    drive.drain()
    drive.check_texts()


def test_the_router_is_told_of_each_token_once_and_only_when_due() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 5, routing=KEEP_2))
    drive.drain()
    assert drive.texts["a"] == [*PROMPT, *drive.tokens["a"][:4]]
    assert drive.scheduler.take_queries().text == []


def test_a_request_that_ended_asks_for_nothing() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, 4, routing=TokenRouting("test", every=1)))
    plan = drive.scheduler.schedule()
    assert plan is not None
    drive.scheduler.update(plan, drive.runner.run(plan))
    drive.scheduler.cancel("a")
    assert drive.scheduler.take_queries().text == []
    drive.scheduler.set_weights("a", 6, (1.0, 1.0))  # an answer on its way is dropped


@pytest.mark.parametrize("context", ["keep", "recompute"])
def test_text_is_that_of_the_request_alone(context: Context) -> None:
    drive = Drive(SchedulerConfig(max_step_tokens=6))
    for every in (1, 2, 3, 5):
        routing = TokenRouting("test", every=every, context=context)
        drive.add(routed(f"r{every}", (*PROMPT, every), 9, routing=routing))
    drive.drain()
    drive.check_texts()


def test_recompute_runs_the_whole_text_under_the_newest_weights() -> None:
    drive = Drive(SchedulerConfig())
    routing = TokenRouting("test", every=2, context="recompute")
    drive.add(routed("a", PROMPT, 4, routing=routing), ready=False)
    drive.scheduler.adapters_ready("a")
    drive.scheduler.set_weights("a", drive.asks.pop("a"), (0.0, 1.0))
    drive.step()
    drive.step()
    assert drive.step() is None
    drive.scheduler.set_weights("a", drive.asks.pop("a"), (1.0, 0.0))
    drive.check()
    plan = drive.step()
    assert plan is not None
    assert plan.rows[0].start == 0
    assert by_position(rows_of(drive, "a")) == dict.fromkeys(range(7), (1.0, 0.0))
    drive.step()
    assert drive.weights["a"] == [(0.0, 1.0)] * 2 + [(1.0, 0.0)] * 2


def test_recompute_under_equal_weights_keeps_what_it_has() -> None:
    drive = Drive(SchedulerConfig(), prefix_cache=False)
    routing = TokenRouting("test", every=1, context="recompute")
    drive.add(routed("a", PROMPT, 3, routing=routing), ready=False)
    drive.scheduler.adapters_ready("a")
    starts = []
    while drive.scheduler.live:
        drive.scheduler.set_weights("a", drive.asks.pop("a"), (0.5, 0.5))
        plan = drive.step()
        assert plan is not None
        starts.append(plan.rows[0].start)
    assert starts == [0, 5, 6]


def test_recompute_finds_what_it_computed_under_the_same_weights_before() -> None:
    drive = Drive(SchedulerConfig())
    routing = TokenRouting("test", every=1, context="recompute")
    drive.add(routed("a", range(9), 3, routing=routing), ready=False)
    drive.scheduler.adapters_ready("a")
    starts = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        drive.scheduler.set_weights("a", drive.asks.pop("a"), weights)
        plan = drive.step()
        assert plan is not None
        starts.append(plan.rows[0].start)
    assert starts == [0, 0, 8]


@pytest.mark.parametrize("context", ["keep", "recompute"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_request_preempted_in_mid_routing_replays_its_weights(
    *, context: Context, prefix_cache: bool
) -> None:
    """`urgent` takes the blocks of `a` after its 5th token; `a` then goes on as if nothing was."""
    routing = TokenRouting("test", every=2, context=context)
    request = routed("a", PROMPT, 9, routing=routing)
    alone = Drive(SchedulerConfig())
    alone.add(request)
    alone.drain()

    drive = Drive(SchedulerConfig(policy="priority"), num_blocks=5, prefix_cache=prefix_cache)
    drive.add(request)
    while len(drive.tokens["a"]) < 5:
        drive.answer_all()
        drive.step()
    drive.add(fixed("urgent", range(10, 26), 2, priority=-1))
    drive.drain()
    drive.check_texts()
    assert drive.finals["a"].num_preemptions == 1
    assert drive.tokens["a"] == alone.tokens["a"]
    assert drive.weights["a"] == alone.weights["a"]
    if context == "keep":
        assert by_position(rows_of(drive, "a")) == by_position(rows_of(alone, "a"))


def test_a_preempted_request_replays_while_its_next_weights_are_on_their_way() -> None:
    drive = Drive(SchedulerConfig(policy="priority"), num_blocks=5, prefix_cache=False)
    drive.add(routed("a", PROMPT, 6, routing=KEEP_2))
    drive.step()
    drive.step()
    assert drive.asks["a"] == 7
    drive.add(fixed("urgent", range(10, 26), 1, priority=-1))
    drive.step()
    assert drive.scheduler.live["a"].usage.num_preemptions == 1
    plan = drive.step()
    assert plan is not None
    (row,) = plan.rows
    assert (row.start, row.stop, row.needs_logits) == (0, 6, False)
    assert drive.step() is None
    drive.drain()
    drive.check_texts()


def test_a_preempted_request_that_recomputes_waits_for_its_newest_weights() -> None:
    drive = Drive(SchedulerConfig(policy="priority", max_running=1))
    routing = TokenRouting("test", every=2, context="recompute")
    drive.add(routed("a", PROMPT, 6, routing=routing))
    drive.step()
    drive.step()
    drive.add(fixed("urgent", [1], 1, priority=-1))
    drive.step()
    assert drive.scheduler.live["a"].status == "waiting_weights"
    assert drive.step() is None
    drive.drain()
    drive.check_texts()


def test_what_the_prefix_cache_gives_may_be_all_whose_weights_are_known() -> None:
    """Two whole blocks: `a` comes back to them, and has nothing to compute before the answer."""
    drive = Drive(SchedulerConfig(policy="priority", max_running=1))
    drive.add(routed("a", PROMPT, 6, routing=KEEP_2))
    while drive.asks.get("a") != 9:
        drive.answer_all()
        drive.step()
    drive.add(fixed("urgent", [1], 1, priority=-1))
    drive.step()
    assert drive.step() is None
    assert drive.scheduler.live["a"].num_computed == 8
    drive.answer("a")
    plan = drive.step()
    assert plan is not None
    assert plan.rows[0].start == 8
    drive.drain()
    drive.check_texts()


def test_prefix_blocks_are_shared_by_whoever_runs_under_the_same_weights() -> None:
    drive = Drive(SchedulerConfig())
    prompt = tuple(range(12))
    drive.add(fixed("a", prompt, 1, mixture={"sha256:a": 0.5, "sha256:b": 0.0}))
    drive.drain()
    drive.add(routed("same", prompt, 1, routing=KEEP_2), ready=False)
    drive.add(routed("other", prompt, 1, routing=KEEP_2), ready=False)
    for request_id, weights in (("same", (0.5, 0.0)), ("other", (0.5, 0.5))):
        drive.scheduler.adapters_ready(request_id)
        drive.scheduler.set_weights(request_id, drive.asks.pop(request_id), weights)
    drive.drain()
    assert drive.finals["same"].num_cached_tokens == 8
    assert drive.finals["other"].num_cached_tokens == 0


@pytest.mark.parametrize(
    ("num_tokens", "weights", "match"),
    [
        (4, (0.5, 0.5), "did not ask for weights from 4 tokens"),
        (5, (0.5,), "weights has 1 values: 2 candidates"),
        (5, (0.5, float("nan")), "weights has nan"),
        (5, (0.5, 1e39), "finite float32"),
    ],
)
def test_answers_of_no_use_are_errors(num_tokens: int, weights: Weights, match: str) -> None:
    drive = Drive(SchedulerConfig())
    drive.add(routed("a", PROMPT, routing=KEEP_2), ready=False)
    with pytest.raises(RouterError, match=match):
        drive.scheduler.set_weights("a", num_tokens, weights)
    final = drive.scheduler.fail("a", FinishReason.FAILED, "router failed")
    assert final is not None
    drive.check()


def test_weights_that_nobody_asked_for_are_errors() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("a", PROMPT))
    with pytest.raises(RouterError, match="did not ask"):
        drive.scheduler.set_weights("a", 5, ())
    drive.add(routed("b", PROMPT, routing=KEEP_2))
    with pytest.raises(RouterError, match="did not ask"):
        drive.scheduler.set_weights("b", 5, (1.0, 1.0))  # a second answer


def test_a_stop_token_ends_a_routed_request_without_a_question() -> None:
    drive = Drive(SchedulerConfig())
    sampling = SamplingSpec(max_new_tokens=9, stop_token_ids=tuple(range(40)))
    request = EngineRequest(
        "a",
        PROMPT,
        sampling,
        ("sha256:a",),
        routing=TokenRouting("test"),
        reports=Reports(weights=True),
    )
    drive.add(request)
    drive.drain()
    assert drive.finals["a"].reason is FinishReason.STOP_TOKEN
    assert drive.texts["a"] == list(PROMPT)
