"""Poison that comes with new weights, under which the whole context is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.config import CacheConfig, EngineConfig
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, SamplingSpec, TokenRouting
from router_engine.scheduling.request_validation import NOT_FINITE
from tests.router_engine import paths
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import EnginePath, path_params
from tests.router_engine.poison import POISONS
from tests.support.expert_adapters import LORA, make_expert_folder
from tests.support.harness import request

TEXT = range(5, 16)


@pytest.mark.parametrize("path", path_params(paths.REFERENCE, paths.CPU, paths.CUDA), indirect=True)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_was_written_under_any_weights_is_never_found(
    rows: int, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """rows: of weights that are healthy, before those that overflow."""
    config = EngineConfig(cache=CacheConfig(num_blocks=64, block_size=4))
    engine = make_engine(config=config)
    healthy = engine.publish("healthy", make_expert_folder(tmp_path / "healthy", LORA, seed=1))
    poison = engine.publish("poison", POISONS["A"].folder(tmp_path / "poison", seed=2))
    weights = [0.5, 0.9, -0.4][:rows]
    (first,) = engine.run(request("first", TEXT, {healthy: weights[0]}, max_new_tokens=1))
    kept = engine.findable_blocks()
    given = {"weights": [*([weight, 0.0] for weight in weights), [0.5, 1.0]]}
    (failed,) = engine.run(
        EngineRequest(
            "routed",
            tuple(TEXT),
            SamplingSpec(max_new_tokens=rows + 2),
            (healthy, poison),
            routing=TokenRouting("given", given, every=1, context="recompute"),
        )
    )
    assert (failed.end.reason, failed.end.error) == (FinishReason.FAILED, NOT_FINITE)
    assert failed.end.num_cached_tokens == 8
    assert len(failed.tokens) == rows
    assert failed.ids[0] == first.ids[0]
    assert engine.findable_blocks() == kept
    assert not kept & engine.spoilt_blocks()
    for index, weight in enumerate(weights):
        (answer,) = engine.run(request(f"r{index}", TEXT, {healthy: weight}, max_new_tokens=1))
        assert answer.end.reason is FinishReason.LENGTH
        assert answer.end.num_cached_tokens == (0 if index else 8)
