"""Routers of whole prompts (instance-level MoA): one gate of a prompt for all that follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import Context, EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine import paths
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import EnginePath, path_params
from tests.support.expert_adapters import INSTANCE, SOFT, Layers, make_expert_folder
from tests.support.expert_oracle import put_experts, with_experts
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy

TEXT = list(range(5, 25))
SMALL = EngineConfig(cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_step_tokens=4))
PRE_NORM = replace(INSTANCE, router="linear", router_input="pre_norm", threshold=0.9)


def routed(digest: str, prompt: list[int], weights: list[float], context: Context) -> EngineRequest:
    """Given weights of one adapter, a token each; its gates are reported."""
    routing = TokenRouting("given", {"weights": [[weight] for weight in weights]}, 1, context)
    sampling = SamplingSpec(max_new_tokens=len(weights))
    return EngineRequest(
        "routed", tuple(prompt), sampling, (digest,), routing=routing, reports=Reports(gates=True)
    )


@pytest.mark.parametrize("layers", [INSTANCE, PRE_NORM], ids=["post_norm", "pre_norm"])
def test_a_prompt_longer_than_a_step_is_read_as_a_whole(
    layers: Layers, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Beside requests that go on meanwhile, and again with nothing found in the prefix cache."""
    folder = make_expert_folder(tmp_path / "instance", layers)
    engine = make_engine(config=SMALL)
    mixture = {engine.publish("instance", folder): 1.0}
    prompt = path.short(TEXT)
    answers = engine.run(
        request("base", prompt, max_new_tokens=path.tokens),
        request("first", prompt, mixture, max_new_tokens=path.tokens),
        request("other", prompt[3:], mixture, max_new_tokens=path.tokens),
    )
    (again,) = engine.run(request("again", prompt, mixture, max_new_tokens=path.tokens))
    assert again.end.num_cached_tokens == 0
    for answer, text in ((answers[1], prompt), (answers[2], prompt[3:]), (again, prompt)):
        model = with_experts(path.base("llama"), [(folder, 1.0)], len(text))
        assert_agrees(answer, *greedy(model, text, path.tokens), path.tolerance)
    # The negative control: gates of a mean over all tokens so far are others.
    model = with_experts(path.base("llama"), [(folder, 1.0)], 10**6)
    _, rows = greedy(model, [*prompt, *again.ids[:-1]], 1)
    assert abs(float(rows[0][again.ids[-1]]) - again.logprobs[-1]) > path.tolerance


@pytest.mark.parametrize("path", path_params(paths.REFERENCE, paths.CPU), indirect=True)
def test_a_preempted_request_goes_on_under_the_gates_of_its_prompt(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """`soon` takes the blocks that `late` has, which is then computed again, four tokens a step."""
    folder = make_expert_folder(tmp_path / "instance", INSTANCE)
    config = EngineConfig(
        cache=CacheConfig(num_blocks=7, block_size=8),
        scheduler=SchedulerConfig(max_step_tokens=4, policy="priority"),
    )
    engine = make_engine(config=config)
    mixture = {engine.publish("instance", folder): 1.0}
    engine.run(request("first", TEXT, mixture, max_new_tokens=1))  # brings the adapter
    late = request("late", TEXT, mixture, max_new_tokens=12)
    answer, _ = engine.run(replace(late, priority=1), request("soon", TEXT, max_new_tokens=20))
    assert answer.end.num_preemptions > 0
    model = with_experts(path.base("llama"), [(folder, 1.0)], len(TEXT))
    assert_agrees(answer, *greedy(model, TEXT, 12), path.tolerance)


def test_gates_are_found_though_the_prompt_does_not_use_them(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Weights 0 until the prompt's last token; the gates are of what its layers read then."""
    folder = make_expert_folder(tmp_path / "instance", INSTANCE)
    engine = make_engine(config=SMALL)
    digest = engine.publish("instance", folder)
    prompt = path.short(TEXT)
    weights = [0.0, *[1.0] * (path.tokens - 1)]
    (answer,) = engine.run(routed(digest, prompt, weights, "keep"))
    model = path.base("llama")
    (adapter,) = put_experts(model, [(folder, 0.0)], len(prompt))
    ids, rows = greedy(model, prompt, 1)
    gates = {layer: gate[0].clone() for layer, gate in adapter.gates.items()}
    assert answer.ids[0] == ids[0]
    assert answer.logprobs[0] == pytest.approx(float(rows[0][ids[0]]), abs=path.tolerance)
    (said,) = answer.end.gates
    assert said.tokens == path.tokens - 1
    np.testing.assert_allclose(
        np.array(said.mean, dtype=float),
        np.array([gate.tolist() for gate in gates.values()]),
        atol=path.tolerance,
    )
    np.testing.assert_allclose(np.array(said.std, dtype=float), 0, atol=1e-6)


def test_a_context_that_is_computed_anew_is_read_anew(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Under `recompute` the prompt's gates are those under the newest weights, too."""
    folder = make_expert_folder(tmp_path / "instance", INSTANCE)
    engine = make_engine(config=SMALL)
    digest = engine.publish("instance", folder)
    prompt = path.short(TEXT)
    weights = [0.3, 1.0, 0.5, 0.8][: path.tokens]
    (answer,) = engine.run(routed(digest, prompt, weights, "recompute"))
    ids = list(prompt)
    for index, weight in enumerate(weights):
        model = with_experts(path.base("llama"), [(folder, weight)], len(prompt))
        (token,), (row,) = greedy(model, ids, 1)
        assert answer.ids[index] == token
        assert answer.logprobs[index] == pytest.approx(float(row[token]), abs=path.tolerance)
        ids.append(token)


def test_a_router_that_reads_hidden_states_is_refused(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    digests = tuple(
        engine.publish(name, make_expert_folder(tmp_path / name, layers))
        for name, layers in (("soft", SOFT), ("instance", INSTANCE))
    )
    engine.put_centroids(dict.fromkeys(digests, [1.0] * 128))
    sampling = SamplingSpec(max_new_tokens=4)
    routing = TokenRouting("hidden_mean", {})
    probed = EngineRequest(
        "probed", tuple(TEXT), sampling, digests, routing=routing, reads_hidden_states=True
    )
    (answer,) = engine.run(probed)
    assert answer.end.reason is FinishReason.REFUSED
    assert str(answer.end.error).startswith(f"{digests[1]}: gates of whole prompts")
