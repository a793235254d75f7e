"""The budget of an engine's memory: on a card, which is a pretended one here, and without one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from router_engine.config import CacheConfig, EngineConfig
from router_engine.memory.budget import largest_step
from router_engine.scheduling.plan import StepLimits
from tests.router_engine.conftest import MakeHarness
from tests.router_engine.memory import triton_budget as checks
from tests.support.waiting import HANG_SECONDS


@pytest.mark.parametrize(
    "check", [checks.check_the_cache_has_what_is_left, checks.check_what_is_asked_for_is_kept]
)
def test_on_a_card(
    check: Callable[[str], None], interpreter: ProcessPoolExecutor, tmp_path: Path
) -> None:
    interpreter.submit(check, str(tmp_path)).result(HANG_SECONDS)


def test_a_cpu_tells_what_its_memory_is_for(make_harness: MakeHarness) -> None:
    engine = make_harness(config=EngineConfig(cache=CacheConfig(num_blocks=64))).engine
    weights, adapters, kv = engine.info.memory
    assert weights.num_bytes == sum(each.nbytes for each in engine.model.parameters()) + 64
    assert adapters.num_bytes == engine.base.adapter_bytes == 1 << 30
    assert (kv.num_bytes, kv.told) == (64 * 16 * 2 * 2 * 2 * 16 * 4, "1,024 tokens")


@pytest.mark.parametrize(("blocks", "drawn"), [(1000, 8), (5, 5)])
def test_the_largest_step_is_no_larger_than_its_blocks(blocks: int, drawn: int) -> None:
    plan = largest_step(StepLimits(64, 8, 512, 16), 100, blocks)
    assert len(plan.rows) == drawn
    used = [block for row in plan.rows for block in row.block_ids]
    assert len({*used}) == len(used)
    assert max(used) < blocks
    assert sum(len(row.token_ids) for row in plan.rows) == 64
    assert all(len(row.block_ids) * 16 >= len(row.token_ids) for row in plan.rows)
