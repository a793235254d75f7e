"""What a request wrote that is not finite in the end is never found, whenever it wrote it.

`Drive` checks after each step that no block of it is findable; these say which ones there were.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_engine.config import SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, Reports, TokenRouting
from router_engine.scheduling.request_validation import NOT_FINITE
from tests.router_engine.scheduling.harness import BLOCK_SIZE, Drive, Weights, fixed, routed

ADAPTERS = ("sha256:a", "sha256:b")
PROMPT = range(1, 10)  # two blocks and a token
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)
URGENT = fixed("urgent", range(20, 37), 1, priority=-1)  # five blocks


def under(name: str, weights: Weights, prompt: range = PROMPT) -> EngineRequest:
    return fixed(name, prompt, 1, mixture=dict(zip(ADAPTERS, weights, strict=True)))


def found(drive: Drive, request: EngineRequest) -> int:
    """Tokens of the prefix cache that a request begins with."""
    drive.add(request)
    drive.drain()
    return drive.finals[request.request_id].num_cached_tokens


def fail(drive: Drive, name: str, member: str | None = None) -> None:
    """The next step is not finite in a request, or in one member of it."""
    drive.runner.spoilt.add(member or name)
    drive.step()
    final = drive.finals[name]
    assert (final.reason, final.error) == (FinishReason.FAILED, NOT_FINITE)


def preempt(drive: Drive, name: str) -> None:
    """`URGENT` displaces a request, computes its prompt, and leaves nothing that can be found."""
    drive.add(URGENT)
    drive.step(cancelled_in_flight=["urgent"])
    assert drive.scheduler.live[name].usage.num_preemptions == 1
    assert not drive.scheduler.live[name].block_table.block_ids


@pytest.mark.parametrize("answers", [(SECOND,), (SECOND, FIRST), (SECOND, (0.5, 0.5), SECOND)])
def test_of_all_weights_that_a_context_was_computed_under(answers: tuple[Weights, ...]) -> None:
    """What it found of another's, under the first weights, stays."""
    drive = Drive(SchedulerConfig())
    assert found(drive, under("other", FIRST)) == 0
    kept = dict(drive.pool.keys)
    routing = TokenRouting("test", every=1, context="recompute")
    drive.add(routed("r", PROMPT, 20, routing=routing), ready=False)
    drive.scheduler.adapters_ready("r")
    for weights in (FIRST, *answers):
        drive.scheduler.set_weights("r", drive.asks.pop("r"), weights)
        drive.step()
    assert len(drive.pool.keys) > len(kept)
    drive.scheduler.set_weights("r", drive.asks.pop("r"), answers[-1])
    fail(drive, "r")
    assert drive.finals["r"].num_cached_tokens == 2 * BLOCK_SIZE
    assert drive.pool.keys == kept
    assert (drive.pool.num_owned, drive.pool.num_cached) == (0, len(kept))
    assert found(drive, under("again", FIRST)) == 2 * BLOCK_SIZE
    assert found(drive, under("second", SECOND)) == 0


def test_of_weights_that_were_replaced_after_what_was_computed_under_them() -> None:
    """It fails in its first step under the new ones."""
    drive = Drive(SchedulerConfig())
    routing = TokenRouting("test", every=1, context="recompute")
    drive.add(routed("r", PROMPT, 20, routing=routing), ready=False)
    drive.scheduler.adapters_ready("r")
    drive.scheduler.set_weights("r", drive.asks.pop("r"), FIRST)
    drive.step()
    drive.scheduler.set_weights("r", drive.asks.pop("r"), SECOND)
    assert drive.pool.num_cached == 2
    fail(drive, "r")
    assert not drive.pool.keys
    assert found(drive, under("first", FIRST)) == 0


@pytest.mark.parametrize("steps", [0, 1, 3], ids="fails {} steps after it came back".format)
def test_of_what_it_computed_before_it_was_preempted(steps: int) -> None:
    """`short` wrote the first block under that key, which is evicted; the second is still there.

    So all is computed again, but the second block's key leads to the old copy.
    """
    drive = Drive(SchedulerConfig(policy="priority"), num_blocks=6)
    short = under("short", FIRST, range(1, 6))
    drive.add(short)
    drive.add(replace(fixed("r", PROMPT, 8), adapters=ADAPTERS, weights=FIRST))
    drive.step()
    (old,) = drive.scheduler.live["r"].block_keys.published
    preempt(drive, "r")
    assert drive.pool.cached == (old,)
    for _ in range(steps):
        drive.step()
        assert drive.scheduler.live["r"].block_table.block_ids[1] != old
        assert old in drive.pool.keys
    fail(drive, "r")
    assert not drive.pool.keys
    assert len(drive.pool.free) == 6
    assert found(drive, replace(short, request_id="short again")) == 0
    assert found(drive, under("long", FIRST)) == BLOCK_SIZE  # what `short again` wrote


@pytest.mark.parametrize("report_gates", [False, True])  # those search for nothing
@pytest.mark.parametrize("reads_hidden_states", [False, True])
def test_of_what_it_found_of_its_own(*, reads_hidden_states: bool, report_gates: bool) -> None:
    drive = Drive(SchedulerConfig(policy="priority"), num_blocks=8)
    request = replace(fixed("r", PROMPT, 8), reads_hidden_states=reads_hidden_states)
    drive.add(replace(request, reports=Reports(gates=report_gates)))
    drive.step()
    preempt(drive, "r")
    plan = drive.step()
    assert plan is not None
    assert plan.rows[0].start == (0 if report_gates else 2 * BLOCK_SIZE)
    fail(drive, "r")
    assert not drive.pool.keys
    assert found(drive, replace(request, request_id="again")) == 0


@pytest.mark.parametrize("member", ["r", "r#1"])
def test_of_all_members_that_were_preempted_together(member: str) -> None:
    """A member whose prompt ends with a block computes that block again: a token has to be left."""
    drive = Drive(SchedulerConfig(policy="priority", max_step_tokens=12), num_blocks=7)
    one = fixed("r", range(1, 9), 4, mixture={"sha256:a": 1.0})
    drive.add(replace(one, ensemble=(("sha256:b",),)))
    drive.step()
    assert [state.num_computed for state in drive.scheduler.running] == [8, 4]
    drive.add(replace(URGENT, prompt_token_ids=tuple(range(20, 32))))
    drive.step(cancelled_in_flight=["urgent"])
    assert drive.scheduler.live["r"].usage.num_preemptions == 1
    assert len(drive.pool.keys) == 3
    fail(drive, "r", member)
    assert not drive.pool.keys
    for adapter in ("sha256:a", "sha256:b"):
        assert found(drive, fixed(adapter, range(1, 9), 1, mixture={adapter: 1.0})) == 0


def test_who_shares_its_blocks_keeps_them() -> None:
    """They can't be found any more, but hold the sharer's text, in which it goes on."""
    drive = Drive(SchedulerConfig())
    drive.add(fixed("r", PROMPT, 8))
    drive.step()
    drive.add(fixed("sharer", PROMPT, 8))
    drive.step()
    shared = drive.scheduler.live["r"].block_table.block_ids[:2]
    assert drive.scheduler.live["sharer"].block_table.block_ids[:2] == shared
    fail(drive, "r")
    assert [drive.pool.references(block) for block in shared] == [1, 1]
    assert found(drive, fixed("late", PROMPT, 8)) == 0
    drive.check_texts()


def test_what_another_has_written_since_is_found() -> None:
    """All that `r` wrote is evicted; `other` writes the same text elsewhere."""
    drive = Drive(SchedulerConfig(policy="priority", max_running=1), num_blocks=6)
    drive.add(fixed("r", PROMPT, 8))
    drive.step()
    for name, prompt in (("all blocks", range(20, 43)), ("one block", [30])):
        drive.add(fixed(name, prompt, 1, priority=-1))
        drive.step(cancelled_in_flight=[name])
    assert not drive.pool.keys
    drive.add(fixed("other", PROMPT, 1, priority=-1))
    drive.step()
    assert drive.finals["other"].num_cached_tokens == 0
    kept = dict(drive.pool.keys)
    assert len(kept) == 2
    assert kept.items().isdisjoint(drive.scheduler.live["r"].block_keys.published.items())
    fail(drive, "r")
    assert drive.pool.keys == kept
