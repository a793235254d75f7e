"""Routing by the base's own hidden states: against transformers and PEFT, and under pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import CPU, REFERENCE, EnginePath, PathEngine, path_params
from tests.support.harness import Answer, request
from tests.support.oracle import assert_agrees, set_mixture

TAP = 1  # of two layers
CONFIG = EngineConfig(model=ModelConfig(probe_layer=TAP), cache=CacheConfig(num_blocks=256))
PROMPT = list(range(5, 30))
BLOCK = 4
TEMPERATURE = 0.2
PARAMS = {"temperature": TEMPERATURE, "prior": "uniform", "warmup": 0}
FAST = path_params(REFERENCE, CPU)

Vector = NDArray[np.float64]


def _routed(
    name: str,
    digests: Sequence[str],
    *,
    count: int,
    prompt: Sequence[int] = PROMPT,
    every: int = 1,
    **params: Any,
) -> EngineRequest:
    return EngineRequest(
        name,
        tuple(prompt),
        SamplingSpec(max_new_tokens=count),
        adapters=tuple(digests),
        routing=TokenRouting("hidden_mean", {**PARAMS, **params}, every),
        reports=Reports(weights=True),
        reads_hidden_states=True,
    )


def _vectors(count: int) -> Vector:
    """Means and mean squares [count, 2 * 64]."""
    rng = np.random.default_rng(7)
    means = rng.normal(size=(count, 64)) * 0.3
    return np.concatenate((means, means**2 + rng.uniform(0.01, 0.5, size=64)), axis=1)


def _publish(engine: PathEngine, folders: Sequence[Path]) -> list[str]:
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    engine.put_centroids(dict(zip(digests, _vectors(len(digests)).tolist(), strict=True)))
    return digests


@torch.no_grad()
def _mean(base: Any, ids: Sequence[int], window: int | None = None) -> Vector:
    """Of what enters the probe layer, at RMS 1 each, over all tokens but the first.

    Under a window whole blocks are left out that lie before it.
    """
    out = base(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    before = 0 if window is None else max(0, len(ids) - window) // BLOCK * BLOCK
    states = out.hidden_states[TAP][0, max(1, before) :].double().numpy()
    scaled = states / np.sqrt((states**2).mean(axis=1, keepdims=True))
    return np.asarray(scaled.mean(axis=0))


def _weights(mean: Vector, count: int) -> Vector:
    """softmax(cos((e - m) / d, (c_j - m) / d) / T), written out."""
    vectors = _vectors(count)
    rows, squares = vectors[:, :64], vectors[:, 64:]
    middle = rows.mean(axis=0)
    spread = np.sqrt(squares.mean(axis=0) - middle**2)
    e = (mean - middle) / spread
    scores = []
    for row in rows:
        c = (row - middle) / spread
        scores.append(float(e @ c / (np.linalg.norm(e) * np.linalg.norm(c))))
    powers = np.exp(np.array(scores) / TEMPERATURE)
    return np.asarray(powers / powers.sum())


def _set_above_probe(model: Any, weights: Sequence[float]) -> None:
    """A mixture of the layers from the probe layer on."""
    set_mixture(model, list(weights), "sum")
    for name, parameter in model.named_parameters():
        if "lora_B.mixture" in name and any(f"layers.{i}." in name for i in range(TAP)):
            parameter.data.zero_()


@torch.no_grad()
def _oracle(
    base: Any,
    model: Any,
    prompt: list[int],
    count: int,
    every: int,
    members: int,
    window: int | None,
) -> tuple[list[int], list[torch.Tensor], list[Vector]]:
    """The prompt but its last token under the prior, then each token under the newest weights."""
    ids, outputs, used = list(prompt), [], []
    _set_above_probe(model, [1 / members] * members)
    past = model(input_ids=torch.tensor([ids[:-1]]), use_cache=True).past_key_values
    for index in range(count):
        if index % every == 0:
            weights = _weights(_mean(base, ids[:-1], window), members)
            _set_above_probe(model, weights.tolist())
        out = model(input_ids=torch.tensor([ids[-1:]]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        outputs.append(out.logits[0, -1].float().log_softmax(-1))
        used.append(weights)
        ids.append(int(outputs[-1].argmax()))
    return ids[len(prompt) :], outputs, used


@pytest.mark.parametrize(("every", "window"), [(1, None), (3, None), (1, 6)])
def test_against_transformers_and_peft(
    every: int,
    window: int | None,
    path: EnginePath,
    make_engine: MakeEngine,
    folders: list[Path],
) -> None:
    prompt = path.short(PROMPT)
    engine = make_engine(
        config=replace(CONFIG, cache=CacheConfig(block_size=BLOCK, num_blocks=256))
    )
    digests = _publish(engine, folders[:3])
    uniform = dict.fromkeys(digests, 1 / 3)
    routed, fixed = engine.run(
        _routed("routed", digests, count=path.tokens, prompt=prompt, every=every, window=window),
        request("fixed", prompt, uniform, max_new_tokens=path.tokens),
    )
    model, base = path.peft("llama", folders[:3]), path.base("llama")
    ids, outputs, used = _oracle(base, model, prompt, path.tokens, every, 3, window)
    assert_agrees(routed, ids, outputs, path.tolerance)
    for token, expected in zip(routed.tokens, used, strict=True):
        assert token.weights == pytest.approx(expected, abs=20 * path.tolerance)
    moved = np.ptp([token.weights[0] for token in routed.tokens])
    assert moved > 1e-3 or path.tokens <= every  # negative control
    assert routed.logprobs != fixed.logprobs


def _same(one: Answer, other: Answer) -> None:
    assert one.ids == other.ids
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    for a, b in zip(one.tokens, other.tokens, strict=True):
        assert a.weights == pytest.approx(b.weights, abs=1e-4)


@pytest.mark.parametrize("path", FAST, indirect=True)
@pytest.mark.parametrize("window", [None, 6])
def test_cached_prompts_are_routed_as_fresh_ones(
    window: int | None, make_engine: MakeEngine, folders: list[Path]
) -> None:
    config = replace(CONFIG, cache=CacheConfig(block_size=BLOCK, num_blocks=64))
    engine = make_engine(config=config)
    digests = _publish(engine, folders[:3])
    lengths = (24, 25, 26)  # whole blocks before the last token, one past them, two
    for length in lengths:
        prompt = list(range(100, 100 + length))
        fresh, base, again = (
            engine.run(each)[0]
            for each in (
                _routed(f"fresh {length}", digests, count=8, prompt=prompt, window=window),
                request(f"base {length}", prompt, max_new_tokens=1),
                _routed(f"again {length}", digests, count=8, prompt=prompt, window=window),
            )
        )
        assert again.end.num_cached_tokens == (length - 1) // 4 * 4
        _same(fresh, again)
        assert base.end.num_cached_tokens in (0, 24)  # of the base's own, never a routed one's


@pytest.mark.parametrize("path", FAST, indirect=True)
def test_chunks_preemption_and_neighbours_change_nothing(
    make_engine: MakeEngine, folders: list[Path]
) -> None:
    tight = replace(
        CONFIG,
        cache=CacheConfig(block_size=2, num_blocks=40, prefix_cache=True),
        scheduler=SchedulerConfig(max_step_tokens=7, max_running=4),
    )
    engine, roomy = make_engine(config=tight), make_engine(config=CONFIG)
    for each in (engine, roomy):
        digests = _publish(each, folders[:3])
        # On the device from now on, so that all start together and blocks do run out.
        each.run(request("warm", [1], dict.fromkeys(digests, 1.0), max_new_tokens=1))
    requests: list[EngineRequest] = [
        _routed(
            f"r{i}",
            digests[: 2 + i % 2],
            count=12,
            prompt=PROMPT[i : 18 + i],
            every=1 + i % 2,
            prior=("uniform", "base")[i % 2],
            warmup=5 * (i % 3),
        )
        for i in range(4)
    ]
    neighbour = request("fixed", PROMPT[:9], {digests[0]: 0.7}, max_new_tokens=12)
    *answers, fixed = engine.run(*requests, neighbour)
    assert engine.stats().preemptions > 0
    for one, answer in zip(requests, answers, strict=True):
        _same(answer, roomy.run(one)[0])
    assert fixed.ids == roomy.run(neighbour)[0].ids


@pytest.mark.parametrize("path", FAST, indirect=True)
def test_a_merged_base_gives_the_same(make_engine: MakeEngine, folders: list[Path]) -> None:
    config = replace(CONFIG, cache=CacheConfig(num_blocks=64, prefix_cache=False))
    engine = make_engine(config=config)
    digests = _publish(engine, folders[:3])
    (before,) = engine.run(_routed("before", digests, count=8))
    engine.merge(ResolvedMixture((digests[0], digests[2]), (0.5, 0.4)))
    (merged,) = engine.run(_routed("merged", digests, count=8))
    _same(before, merged)


@pytest.mark.parametrize("path", FAST, indirect=True)
def test_the_prior_and_the_warmup_of_a_prompt(make_engine: MakeEngine, folders: list[Path]) -> None:
    """A warm-up of 6 gives the rest of the prompt the weights of 6 tokens."""
    engine = make_engine(config=CONFIG)
    digests = _publish(engine, folders[:2])
    uniform, base, warm = engine.run(
        _routed("uniform", digests, count=4),
        _routed("base", digests, count=4, prior="base"),
        _routed("warm", digests, count=4, prior="base", warmup=6),
    )
    for other in (base, warm):  # states are the base's whatever the prompt runs under
        assert other.tokens[0].weights == pytest.approx(uniform.tokens[0].weights, abs=1e-5)
    values = {answer.logprobs[0] for answer in (uniform, base, warm)}
    assert len(values) == 3


@pytest.mark.parametrize("path", FAST, indirect=True)
def test_an_embedding_is_the_mean_that_a_request_is_routed_by(
    path: EnginePath, make_engine: MakeEngine
) -> None:
    engine = make_engine(config=CONFIG)
    ask = EngineRequest(
        "e",
        tuple(PROMPT),
        SamplingSpec(max_new_tokens=1),
        reads_hidden_states=True,
        reports=Reports(hidden_mean=True),
    )
    (answer,) = engine.run(ask)
    expected = _mean(path.base("llama"), PROMPT)
    assert answer.end.hidden == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("path", path_params(REFERENCE), indirect=True)
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reads_hidden_states": False}, "reads hidden states: reads_hidden_states must be true"),
        ({"routing": TokenRouting("given", {"weights": [[1.0]]})}, "'given' reads text"),
        ({"routing": TokenRouting("hidden_mean", lag=1)}, "takes lag 0"),
        ({"routing": TokenRouting("hidden_mean", context="recompute")}, "context 'keep'"),
        ({"routing": TokenRouting("hidden_mean", {"heat": 1})}, "takes no parameter 'heat'"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    changed: dict[str, Any], words: str, make_engine: MakeEngine, folders: list[Path]
) -> None:
    engine = make_engine(config=CONFIG)
    digests = _publish(engine, folders[:1])
    (answer,) = engine.run(replace(_routed("r", digests, count=2), **changed))
    assert answer.end.reason in (FinishReason.REFUSED, FinishReason.FAILED)
    assert words in (answer.end.error or "")


@pytest.mark.parametrize("path", path_params(REFERENCE), indirect=True)
def test_an_engine_that_was_given_no_centroids_yet_is_away(
    make_engine: MakeEngine, folders: list[Path]
) -> None:
    engine = make_engine(config=CONFIG)
    digests = _publish(engine, folders[:1])
    ask = replace(_routed("r", digests, count=2), adapters=("sha256:none",))
    (answer,) = engine.run(ask)
    assert answer.end.reason is FinishReason.ROUTER_AWAY
    assert "no centroid of sha256:none" in (answer.end.error or "")
