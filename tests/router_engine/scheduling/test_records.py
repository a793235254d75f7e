"""The core records stay small, and know no feature: what a further one may not grow back."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import msgspec
import pytest

from router_engine.config import SchedulerConfig
from router_engine.request import EngineRequest
from router_engine.scheduling import scheduler
from router_engine.scheduling.plan import PlannedRow
from router_engine.scheduling.state import RequestState
from tests.router_engine.scheduling.harness import Drive, fixed

FEATURES = ("probe", "hidden", "gate")  # as words, and as parts of words
SCHEDULER = Path(scheduler.__file__)


def test_the_scheduler_says_no_feature() -> None:
    source = SCHEDULER.read_text()
    assert [word for word in FEATURES if re.search(word, source, re.IGNORECASE)] == []


def test_the_scheduler_is_short() -> None:
    assert len(SCHEDULER.read_text().splitlines()) <= 325


@pytest.mark.parametrize("module", ["scheduler", "planner", "state", "step_builder", "kv_blocks"])
def test_the_core_imports_no_feature_but_by_their_list(module: str) -> None:
    tree = ast.parse((SCHEDULER.parent / f"{module}.py").read_text())
    imported = {
        str(node.module).rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert imported.isdisjoint({"hidden_means", "gate_statistics", "prompt_gates"})


def test_records_have_few_fields() -> None:
    assert len(msgspec.structs.fields(PlannedRow)) <= 12
    assert len(dataclasses.fields(RequestState)) <= 16
    assert len(dataclasses.fields(EngineRequest)) <= 13


def test_a_plain_request_carries_nothing_of_features() -> None:
    drive = Drive(SchedulerConfig())
    drive.add(fixed("plain", [1, 2, 3]))
    plan = drive.step()
    assert plan is not None
    (row,) = plan.rows
    state = drive.scheduler.live["plain"]
    assert row.request is state.request  # referred to, not copied
    assert (row.observers, row.layer_routing, row.ensemble_member) == ((), None, None)
    assert (state.observers, state.queries, state.ensemble) == ((), None, None)
