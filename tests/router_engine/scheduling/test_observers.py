"""What features that watch requests ask of the core: whole prompts, blocks of their own, restarts.

The runner here gives gates by hand; `tests/router_engine/experts` has the same with models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from router_engine.config import SchedulerConfig
from router_engine.events import FinalEvent
from router_engine.request import EngineRequest, Reports, TokenRouting
from router_engine.scheduling.plan import GateValues, PlannedRow, PromptGates, StepOutput, StepPlan
from router_engine.scheduling.prompt_gates import whole_prompt_gates
from tests.router_engine.scheduling.harness import (
    BLOCK_SIZE,
    Drive,
    HashRunner,
    fixed,
    routed,
)

A = "sha256:a"
PROMPT = range(4 * BLOCK_SIZE + 2)
OF_PROMPT = {A: np.full((1, 2), 0.5, dtype=np.float32)}  # [layers, outputs]


class GatedRunner(HashRunner):
    """A `HashRunner` under adapters whose gates are 0.25 and 0.75 for every token."""

    def run(self, plan: StepPlan) -> StepOutput:
        values = np.tile(np.array([0.25, 0.75], dtype=np.float32), (1, plan.num_tokens, 1))
        of_prompts: Mapping[str, PromptGates] = {
            row.request_id: OF_PROMPT for row in plan.rows if self._finds_gates(row)
        }
        return replace(super().run(plan), gates=GateValues(values, ((A, 0, 2),), of_prompts))

    @staticmethod
    def _finds_gates(row: PlannedRow) -> bool:
        gates = whole_prompt_gates(row)
        return gates is not None and gates.values is None


def _drive(max_step_tokens: int = 512) -> Drive:
    drive = Drive(SchedulerConfig(max_step_tokens=max_step_tokens))
    drive.runner = GatedRunner()
    return drive


def _add(drive: Drive, request: EngineRequest) -> None:
    """Its adapters have gating networks of whole prompts."""
    drive.add(request, ready=False)
    drive.scheduler.adapters_ready(request.request_id, reads_whole_prompt=True)
    drive.answer(request.request_id)


def _planned(plan: StepPlan | None) -> dict[str, tuple[int, int]]:
    """(start, stop) by request."""
    assert plan is not None
    return {row.request_id: (row.start, row.stop) for row in plan.rows}


def test_a_prompt_that_is_read_as_a_whole_takes_more_than_the_budget() -> None:
    """In chunks within the budget it would never be read: it would wait without end."""
    drive = _drive(max_step_tokens=4)
    _add(drive, fixed("whole", PROMPT, 2, mixture={A: 1.0}))
    plan = drive.scheduler.schedule()
    assert _planned(plan) == {"whole": (0, len(PROMPT))}


def test_once_it_is_read_the_budget_holds_again() -> None:
    drive = _drive(max_step_tokens=4)
    _add(drive, fixed("whole", PROMPT, 2, mixture={A: 1.0}))
    plan = drive.scheduler.schedule()
    assert plan is not None
    drive.scheduler.update(plan, drive.runner.run(plan))
    assert _planned(drive.step()) == {"whole": (len(PROMPT), len(PROMPT) + 1)}


def test_its_blocks_are_neither_shared_nor_searched_for() -> None:
    drive = _drive()
    for name in ("first", "second"):
        _add(drive, fixed(name, PROMPT, 2, mixture={A: 1.0}))
        drive.drain()
    assert drive.pool.keys == {}
    assert drive.finals["second"].num_cached_tokens == 0


def test_when_all_is_computed_again_its_gates_are_too() -> None:
    """Under `recompute`: gates found under older weights are of no use."""
    drive = _drive()
    routing = TokenRouting("test", context="recompute")
    _add(drive, routed("r", PROMPT, 4, routing=routing))
    drive.step()
    (observer,) = drive.scheduler.live["r"].observers
    assert not observer.needs_whole_prompt
    drive.scheduler.set_weights("r", len(PROMPT) + 1, (0.25, 3.0))
    assert observer.needs_whole_prompt


@pytest.mark.parametrize("gates", [False, True])
def test_a_request_that_reports_gates_computes_every_token(*, gates: bool) -> None:
    """Blocks of the prefix cache say nothing of gates; others find those that it publishes."""
    drive = _drive()
    for name in ("first", "second"):
        request = fixed(name, PROMPT, 2, mixture={A: 1.0})
        drive.add(replace(request, reports=Reports(gates=gates)))
        drive.drain()
    cached = drive.finals["second"].num_cached_tokens
    assert cached == (0 if gates else 4 * BLOCK_SIZE)
    drive.add(fixed("third", PROMPT, 2, mixture={A: 1.0}))
    drive.drain()
    assert drive.finals["third"].num_cached_tokens == 4 * BLOCK_SIZE
    _check_report(drive.finals["second"], len(PROMPT) + 1 if gates else 0)


def _check_report(final: FinalEvent, tokens: int) -> None:
    reported = [(each.adapter, each.tokens, each.mean) for each in final.gates]
    assert reported == ([(A, tokens, ((0.25, 0.75),))] if tokens else [])
