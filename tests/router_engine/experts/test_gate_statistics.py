"""What a request that asks is told of its gates: those of the equation, each token once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import GateStatistics
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import CPU, REFERENCE, EnginePath, path_params
from tests.support.expert_adapters import LORA, MOE_LORA, SPARSE, make_expert_folder
from tests.support.expert_oracle import put_experts
from tests.support.harness import request
from tests.support.tiny import family_model

KINDS = {"lora": LORA, "moe": replace(MOE_LORA, first_layer=1), "sparse": SPARSE}
WEIGHTS = {"lora": 0.7, "moe": 0.5, "sparse": -0.6}
PROMPT = list(range(5, 25))

Gates = NDArray[np.float64]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {kind: make_expert_folder(tmp_path / kind, layers) for kind, layers in KINDS.items()}


def _asked(name: str, prompt: Sequence[int], mixture: Mapping[str, float], n: int) -> EngineRequest:
    return replace(request(name, prompt, mixture, max_new_tokens=n), reports=Reports(gates=True))


@torch.no_grad()
def _gates(model: Any, folders: Mapping[str, Path], ids: Sequence[int]) -> dict[str, list[Gates]]:
    """Of `moe` and `sparse`, for each layer that has a router: [tokens, experts]."""
    adapters = put_experts(model, [(folders[kind], WEIGHTS[kind]) for kind in WEIGHTS])
    model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    found = dict(zip(WEIGHTS, adapters, strict=True))
    return {
        kind: [gates.double().numpy() for _, gates in sorted(found[kind].gates.items())]
        for kind in ("moe", "sparse")
    }


def _check(said: GateStatistics, expected: Sequence[Gates], near: Any) -> None:
    """The last layers of `said` against gates [tokens, experts] of each."""
    first = len(said.mean) - len(expected)
    assert said.tokens == len(expected[0])
    for rows in (said.mean, said.std):
        assert all(value is None for row in rows[:first] for value in row)
    for layer, gates in enumerate(expected, first):
        assert said.mean[layer] == near(gates.mean(axis=0).tolist())
        assert said.std[layer] == near(gates.std(axis=0).tolist())
    assert said.spread == near(np.mean([gates.std(axis=1) for gates in expected]))
    assert said.closed == near(np.mean([gates == 0 for gates in expected]))


def test_they_are_those_of_the_equation(
    path: EnginePath, make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    engine = make_engine(config=EngineConfig(cache=CacheConfig(num_blocks=96)))
    digests = {kind: engine.publish(kind, folder) for kind, folder in folders.items()}
    mixture = {digests[kind]: weight for kind, weight in WEIGHTS.items()}
    prompt = path.short(PROMPT)
    silent, asked, alone = engine.run(
        request("silent", prompt, mixture, max_new_tokens=path.tokens),
        _asked("asked", prompt, mixture, path.tokens),
        _asked("alone", prompt, {digests["lora"]: 1.0}, 2),
    )
    assert silent.ids == asked.ids
    assert silent.end.gates == alone.end.gates == ()
    said = {each.adapter: each for each in asked.end.gates}
    assert set(said) == {digests["moe"], digests["sparse"]}
    # The token that ends the answer is read by no pass.
    gates = _gates(path.base("llama"), folders, [*prompt, *asked.ids[:-1]])

    def near(value: Any) -> Any:
        return pytest.approx(value, abs=max(1e-5, 5 * path.tolerance))

    for kind, expected in gates.items():
        _check(said[digests[kind]], expected, near)
    assert said[digests["moe"]].closed == 0.75
    assert said[digests["sparse"]].mean[0] != near(said[digests["sparse"]].mean[1])
    stats = engine.stats()
    passes = 2 * path.tokens  # of two requests, each of which yields a token
    assert sum(stats.gate_counts) == passes * (8 + 2 * 6)
    assert stats.gate_counts[0] >= passes * 6


@pytest.mark.parametrize("path", path_params(REFERENCE, CPU), indirect=True)
def test_preemption_chunks_and_cached_prompts_count_a_token_once(
    make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    tight = EngineConfig(
        cache=CacheConfig(block_size=2, num_blocks=36),
        scheduler=SchedulerConfig(max_step_tokens=7, max_running=4),
    )
    engine = make_engine(config=tight)
    digests = {kind: engine.publish(kind, folder) for kind, folder in folders.items()}
    mixture = {digests[kind]: weight for kind, weight in WEIGHTS.items()}
    # On the device and in the prefix cache from now on.
    engine.run(request("warm", PROMPT, mixture, max_new_tokens=1))
    asked = [_asked(f"r{i}", PROMPT[: 20 - i], mixture, 12) for i in range(4)]
    answers = engine.run(*asked)
    assert max(answer.end.num_preemptions for answer in answers) > 0
    for each, answer in zip(asked, answers, strict=True):
        assert answer.end.num_cached_tokens == 0
        ids = [*each.prompt_token_ids, *answer.ids[:-1]]
        gates = _gates(family_model("llama"), folders, ids)
        assert {said.adapter for said in answer.end.gates} == {digests["moe"], digests["sparse"]}
        for said in answer.end.gates:
            kind = "moe" if said.adapter == digests["moe"] else "sparse"
            _check(said, gates[kind], lambda value: pytest.approx(value, abs=1e-5))


@pytest.mark.parametrize("path", path_params(REFERENCE, CPU), indirect=True)
def test_tokens_at_weight_0_are_not_counted(
    make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    engine = make_engine(config=EngineConfig(cache=CacheConfig(num_blocks=96)))
    digests = tuple(engine.publish(kind, folders[kind]) for kind in ("sparse", "lora"))
    rows = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]
    ask = EngineRequest(
        "r",
        tuple(PROMPT),
        SamplingSpec(max_new_tokens=4),
        adapters=digests,
        routing=TokenRouting("given", {"weights": rows}),
        reports=Reports(gates=True),
    )
    (answer,) = engine.run(ask)
    (said,) = answer.end.gates
    assert said.adapter == digests[0]
    assert said.tokens == len(PROMPT) + 1
