"""Weights that change from token to token: against PEFT, under preemption and prefix reuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters_store.types import Combination
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import Context, EngineRequest, SamplingParams, TokenRouting
from router_engine.routers.token.given import GivenTokenRouter
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, peft_model, set_mixture
from tests.support.tiny import family_model

PROMPT = list(range(5, 30))
COUNT = 10
Rows = list[list[float]]


@pytest.fixture
def routed_harness(make_harness: MakeHarness) -> Callable[..., EngineHarness]:
    """Builds harnesses whose engine knows the router `given`."""

    def make(config: EngineConfig | None = None) -> EngineHarness:
        holder: list[EngineHarness] = []
        router = GivenTokenRouter(wake=lambda: holder[0].news.set())
        holder.append(make_harness(config=config, routers={"given": router}))
        return holder[0]

    return make


def _routed(
    name: str,
    digests: Sequence[str],
    weights: Rows,
    *,
    every: int = 1,
    context: Context = "keep",
    combination: Combination = "sum",
    prompt: Sequence[int] = PROMPT,
) -> EngineRequest:
    return EngineRequest(
        name,
        tuple(prompt),
        SamplingParams(max_new_tokens=len(weights)),
        adapters=tuple(digests),
        combination=combination,
        routing=TokenRouting("given", {"weights": weights}, every, context),
        report_weights=True,
    )


def _rows(seed: int, columns: int, *, positive: bool = False) -> Rows:
    values = np.random.default_rng(seed).normal(size=(COUNT, columns))
    return [[float(v) for v in row] for row in (np.abs(values) if positive else values)]


@torch.no_grad()
def _keep_oracle(model: Any, rows: Rows, every: int) -> tuple[list[int], list[torch.Tensor]]:
    """PEFT with a KV cache, its mixture exchanged between passes: `context: keep`."""
    ids, outputs, past, feed = list(PROMPT), [], None, list(PROMPT)
    for index in range(COUNT):
        if index % every == 0:
            set_mixture(model, rows[index], "sum")
        out = model(input_ids=torch.tensor([feed]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        outputs.append(out.logits[0, -1].log_softmax(-1))
        feed = [int(outputs[-1].argmax())]
        ids += feed
    return ids[len(PROMPT) :], outputs


@torch.no_grad()
def _recompute_oracle(
    model: Any, rows: Rows, combination: str
) -> tuple[list[int], list[torch.Tensor]]:
    """PEFT recomputing the whole text under the newest weights: `context: recompute`."""
    ids, outputs = list(PROMPT), []
    for weights in rows:
        set_mixture(model, weights, combination)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        outputs.append(logits.log_softmax(-1))
        ids.append(int(logits.argmax()))
    return ids[len(PROMPT) :], outputs


@pytest.mark.parametrize("every", [1, 3])
def test_keep_matches_peft_with_a_cache(
    every: int, routed_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    harness = routed_harness()
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    rows = _rows(0, 3)
    answer, fixed = harness.run(
        _routed("r", digests, rows, every=every),
        request("fixed", PROMPT, dict(zip(digests, rows[0], strict=True)), max_new_tokens=COUNT),
    )
    ids, outputs = _keep_oracle(peft_model(family_model("llama"), folders[:3]), rows, every)
    assert_agrees(answer, ids, outputs)
    assert answer.logprobs[0] == pytest.approx(fixed.logprobs[0], abs=1e-5)
    assert answer.logprobs != fixed.logprobs  # negative control: the weights did move
    used = [rows[index - index % every] for index in range(COUNT)]
    assert [list(token.weights) for token in answer.tokens] == used


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_recompute_matches_peft(
    combination: Combination,
    routed_harness: Callable[..., EngineHarness],
    folders: list[Path],
) -> None:
    harness = routed_harness()
    members = [folders[0], folders[3]]
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(members)]
    rows = _rows(1, 2, positive=True)
    answer, kept = harness.run(
        _routed("recompute", digests, rows, context="recompute", combination=combination),
        _routed("keep", digests, rows, combination=combination),
    )
    model = peft_model(family_model("llama"), members)
    ids, outputs = _recompute_oracle(model, rows, combination)
    assert_agrees(answer, ids, outputs)
    assert answer.logprobs != kept.logprobs  # negative control


def test_sixteen_routed_and_fixed_requests_equal_each_alone(
    routed_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    harness, other = routed_harness(), routed_harness()
    for each in (harness, other):
        digests = [each.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    requests = [
        _routed(
            f"r{i}",
            digests[: 1 + i % 6],
            _rows(i, 1 + i % 6),
            every=1 + i % 3,
            context="recompute" if i % 5 == 4 else "keep",
            prompt=PROMPT[i % 4 :],
        )
        for i in range(16)
    ]
    together = harness.run(*requests)
    for one, both in zip(requests, together, strict=True):
        (alone,) = other.run(one)
        assert both.ids == alone.ids
        assert both.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_preempted_in_mid_routing_gives_the_same_tokens(
    routed_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    """Four routed requests of 25 + 10 tokens in 12 blocks of 4: they push each other out."""
    tight = EngineConfig(
        cache=CacheConfig(block_size=4, num_blocks=12, prefix_cache=False),
        scheduler=SchedulerConfig(max_running=4),
    )
    small, large = routed_harness(tight), routed_harness()
    for harness in (small, large):
        digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    requests = [
        _routed(f"r{i}", digests, _rows(i, 3), every=2, prompt=PROMPT[:10]) for i in range(4)
    ]
    expected = large.run(*requests)
    answers = small.run(*requests)
    assert small.engine.stats().preemptions > 0
    assert large.engine.stats().preemptions == 0
    for answer, other in zip(answers, expected, strict=True):
        assert answer.ids == other.ids
        assert [t.weights for t in answer.tokens] == [t.weights for t in other.tokens]


def test_a_prefix_is_shared_only_under_equal_weights(
    routed_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    harness = routed_harness(EngineConfig(cache=CacheConfig(block_size=4)))
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    rows = _rows(3, 2)
    mixture = dict(zip(digests, rows[0], strict=True))
    first, again, fixed, other, base = [
        harness.run(each)[0]
        for each in (
            _routed("first", digests, rows),
            _routed("again", digests, rows),
            request("fixed", PROMPT, mixture),  # the prompt ran under the same weights
            request("other", PROMPT, {digests[0]: 0.9}),
            request("base", PROMPT),
        )
    ]
    assert first.end.num_cached_tokens == 0
    assert again.end.num_cached_tokens == 24
    assert fixed.end.num_cached_tokens == 24
    assert other.end.num_cached_tokens == 0
    assert base.end.num_cached_tokens == 0
    assert again.ids == first.ids


def test_an_adapter_replaced_under_its_name_never_meets_old_kv(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    """Peers key the prefix cache by name and path, and answer with the old adapter's KV."""
    harness, fresh = make_harness(), make_harness()
    old = harness.publish("math", folders[4])
    (before,) = harness.run(request("old", PROMPT, {old: 1.0}))
    new = harness.publish("math", folders[5])
    assert harness.store.resolve("math").digest == new != old
    (after,) = harness.run(request("new", PROMPT, {new: 1.0}))
    fresh.publish("math", folders[5])
    (expected,) = fresh.run(request("new", PROMPT, {new: 1.0}))
    assert after.end.num_cached_tokens == 0
    assert after.ids == expected.ids != before.ids


def test_a_router_that_fails_ends_its_request_only(
    routed_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    harness = routed_harness()
    digest = harness.publish("a0", folders[0])
    short = _routed("short", [digest], [[1.0], [0.5]])
    longer = EngineRequest(
        "longer",
        short.prompt_token_ids,
        SamplingParams(max_new_tokens=5),
        adapters=short.adapters,
        routing=short.routing,
    )
    failed, fine = harness.run(longer, short)
    assert failed.end.reason is FinishReason.FAILED
    assert "2 rows" in str(failed.end.error)
    assert fine.end.reason is FinishReason.LENGTH


def test_an_unknown_router_is_refused(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness()
    digest = harness.publish("a0", folders[0])
    (answer,) = harness.run(_routed("r", [digest], [[1.0]]))
    assert answer.end.reason is FinishReason.REFUSED
    assert "'given' is not served" in str(answer.end.error)
