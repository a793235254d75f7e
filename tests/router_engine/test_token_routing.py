"""Weights that change from token to token: against PEFT, under preemption and prefix reuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters_store.types import Combination
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import Context, EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.routers.base import RoutedWeights
from tests.router_engine.conftest import MakeEngine, MakeHarness
from tests.router_engine.paths import REFERENCE, EnginePath, path_params
from tests.support.harness import request
from tests.support.oracle import assert_agrees, set_mixture

PROMPT = list(range(5, 30))
Rows = list[list[float]]
CONTEXTS: tuple[Context, ...] = ("recompute", "keep")


def _routed(
    name: str,
    digests: Sequence[str],
    weights: Rows,
    *,
    every: int = 1,
    context: Context = "keep",
    combination: Combination = "sum",
    prompt: Sequence[int] = PROMPT,
    lag: int = 0,
) -> EngineRequest:
    return EngineRequest(
        name,
        tuple(prompt),
        SamplingSpec(max_new_tokens=len(weights)),
        adapters=tuple(digests),
        combination=combination,
        routing=TokenRouting("given", {"weights": weights}, every, context, lag),
        reports=Reports(weights=True),
    )


def _rows(seed: int, count: int, columns: int, *, positive: bool = False) -> Rows:
    """Weights [count, columns] from a normal distribution, or their magnitudes."""
    values = np.random.default_rng(seed).normal(size=(count, columns))
    return [[float(v) for v in row] for row in (np.abs(values) if positive else values)]


@torch.no_grad()
def _keep_oracle(
    model: Any, prompt: list[int], rows: Rows, every: int
) -> tuple[list[int], list[torch.Tensor]]:
    """PEFT with a KV cache, its mixture exchanged between passes: `context: keep`."""
    ids, outputs, past, feed = list(prompt), [], None, list(prompt)
    for index, weights in enumerate(rows):
        if index % every == 0:
            set_mixture(model, weights, "sum")
        out = model(input_ids=torch.tensor([feed]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        outputs.append(out.logits[0, -1].log_softmax(-1))
        feed = [int(outputs[-1].argmax())]
        ids += feed
    return ids[len(prompt) :], outputs


@torch.no_grad()
def _recompute_oracle(
    model: Any, prompt: list[int], rows: Rows, combination: str
) -> tuple[list[int], list[torch.Tensor]]:
    """PEFT recomputing the whole text under the newest weights: `context: recompute`."""
    ids, outputs = list(prompt), []
    for weights in rows:
        set_mixture(model, weights, combination)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        outputs.append(logits.log_softmax(-1))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], outputs


@pytest.mark.parametrize("every", [1, 3])
def test_keep_matches_peft_with_a_cache(
    every: int, path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    rows = _rows(0, path.tokens + 2, 3)
    first = dict(zip(digests, rows[0], strict=True))
    answer, fixed = engine.run(
        _routed("r", digests, rows, every=every, prompt=prompt),
        request("fixed", prompt, first, max_new_tokens=len(rows)),
    )
    ids, outputs = _keep_oracle(path.peft("llama", folders[:3]), prompt, rows, every)
    assert_agrees(answer, ids, outputs, path.tolerance)
    assert answer.logprobs[0] == pytest.approx(fixed.logprobs[0], abs=path.tolerance / 10)
    assert answer.logprobs != fixed.logprobs  # negative control: the weights did move
    used = [rows[index - index % every] for index in range(len(rows))]
    assert [list(token.weights) for token in answer.tokens] == used


def test_weights_with_a_lag_are_those_of_the_shifted_rows(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """lag 2 yields tokens under rows 0, 0, 0, 1, 2, ...; under equal rows it changes nothing."""
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    rows = _rows(5, path.tokens, 3)
    shifted = [rows[max(0, index - 2)] for index in range(len(rows))]
    same = [rows[0]] * len(rows)
    late, expected, prompt_only, fixed, unshifted = engine.run(
        _routed("late", digests, rows, lag=2, prompt=prompt),
        _routed("expected", digests, shifted, prompt=prompt),
        _routed("prompt only", digests, same, lag=1, prompt=prompt),
        _routed("fixed", digests, same, prompt=prompt),
        _routed("unshifted", digests, rows, prompt=prompt),
    )
    assert [list(token.weights) for token in late.tokens] == shifted
    assert late.ids == expected.ids
    assert late.logprobs == pytest.approx(expected.logprobs, abs=path.tolerance)
    assert prompt_only.ids == fixed.ids
    assert prompt_only.logprobs == pytest.approx(fixed.logprobs, abs=path.tolerance)
    assert late.logprobs != unshifted.logprobs  # negative control


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_recompute_matches_peft(
    combination: Combination, path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    prompt = path.short(PROMPT)
    engine = make_engine()
    members = [folders[0], folders[3]]
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(members)]
    rows = _rows(1, path.tokens, 2, positive=True)
    answer, kept = engine.run(
        *(
            _routed(context, digests, rows, context=context, combination=combination, prompt=prompt)
            for context in CONTEXTS
        )
    )
    model = path.peft("llama", members)
    ids, outputs = _recompute_oracle(model, prompt, rows, combination)
    assert_agrees(answer, ids, outputs, path.tolerance)
    assert answer.logprobs != kept.logprobs  # negative control


def test_routed_and_fixed_requests_in_one_batch_equal_each_alone(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    engine, other = make_engine(), make_engine()
    for each in (engine, other):
        digests = [each.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    requests = [
        _routed(
            f"r{i}",
            digests[: 1 + i % 6],
            _rows(i, path.tokens, 1 + i % 6),
            every=1 + i % 3,
            context="recompute" if i % 5 == 4 else "keep",
            prompt=path.short(PROMPT[i % 4 :]),
        )
        for i in range(16 if path.every == 1 else 5)
    ]
    requests[1] = request(
        "fixed", requests[1].prompt_token_ids, {digests[0]: 0.7}, max_new_tokens=path.tokens
    )
    together = engine.run(*requests)
    for one, both in list(zip(requests, together, strict=True))[:: path.every]:
        (alone,) = other.run(one)
        assert both.ids == alone.ids
        assert both.logprobs == pytest.approx(alone.logprobs, abs=path.tolerance)


def test_preempted_in_mid_routing_gives_the_same_tokens(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """Three blocks for each request, whose prompt takes two: what is generated needs more."""
    prompt = PROMPT[:4]
    count = 4 if path.every == 1 else 2
    tight = EngineConfig(
        cache=CacheConfig(block_size=2, num_blocks=3 * count, prefix_cache=False),
        scheduler=SchedulerConfig(max_running=count),
    )
    engine = make_engine(config=tight)
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    weights = [_rows(index, path.tokens + 2, 3) for index in range(count)]
    answers = engine.run(
        *(_routed(f"r{i}", digests, rows, every=2, prompt=prompt) for i, rows in enumerate(weights))
    )
    assert engine.stats().preemptions > 0
    model = path.peft("llama", folders[:3])
    for answer, rows in zip(answers, weights, strict=True):
        assert_agrees(answer, *_keep_oracle(model, prompt, rows, 2), path.tolerance)
        used = [rows[index - index % 2] for index in range(len(rows))]
        assert [list(token.weights) for token in answer.tokens] == used


def test_a_prefix_is_shared_only_under_equal_weights(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    prompt = path.short(PROMPT)
    whole = (len(prompt) - 1) // 4 * 4  # in blocks, without the token that is sampled from
    engine = make_engine(config=EngineConfig(cache=CacheConfig(block_size=4, num_blocks=64)))
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    rows = _rows(3, 2, 2)
    mixture = dict(zip(digests, rows[0], strict=True))
    first, again, fixed, other, base = [
        engine.run(each)[0]
        for each in (
            _routed("first", digests, rows, prompt=prompt),
            _routed("again", digests, rows, prompt=prompt),
            # The prompt ran under the same weights.
            request("fixed", prompt, mixture, max_new_tokens=1),
            request("other", prompt, {digests[0]: 0.9}, max_new_tokens=1),
            request("base", prompt, max_new_tokens=1),
        )
    ]
    assert first.end.num_cached_tokens == 0
    assert again.end.num_cached_tokens == whole
    assert fixed.end.num_cached_tokens == whole
    assert other.end.num_cached_tokens == 0
    assert base.end.num_cached_tokens == 0
    assert again.ids == first.ids
    assert again.logprobs == pytest.approx(first.logprobs, abs=path.tolerance)
    assert fixed.logprobs[0] == pytest.approx(first.logprobs[0], abs=path.tolerance)
    assert other.logprobs[0] != first.logprobs[0]  # negative control


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


@pytest.mark.parametrize("path", path_params(REFERENCE), indirect=True)
def test_a_router_that_fails_ends_its_request_only(
    make_engine: MakeEngine, folders: list[Path]
) -> None:
    engine = make_engine()
    digest = engine.publish("a0", folders[0])
    short = _routed("short", [digest], [[1.0], [0.5]])
    longer = EngineRequest(
        "longer",
        short.prompt_token_ids,
        SamplingSpec(max_new_tokens=5),
        adapters=short.adapters,
        routing=short.routing,
    )
    failed, fine = engine.run(longer, short)
    assert failed.end.reason is FinishReason.FAILED
    assert "2 rows" in str(failed.end.error)
    assert fine.end.reason is FinishReason.LENGTH


def test_an_unknown_router_is_refused(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness()
    digest = harness.publish("a0", folders[0])
    (answer,) = harness.run(_routed("r", [digest], [[1.0]]))
    assert answer.end.reason is FinishReason.REFUSED
    assert "'given' is not served" in str(answer.end.error)


class _Away:
    """A token router whose helper has just gone."""

    def __init__(self) -> None:
        self._answers: list[RoutedWeights] = []

    def begin(
        self, request_id: str, token_ids: Sequence[int], candidates: Sequence[str], _: TokenRouting
    ) -> None:
        error = "the helper is away"
        self._answers.append(RoutedWeights(request_id, len(token_ids), error=error, is_away=True))

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        raise AssertionError("its request has ended")

    def end(self, request_id: str) -> None: ...

    def poll(self) -> Sequence[RoutedWeights]:
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None: ...


def test_a_router_that_is_away_is_told_from_one_that_fails(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness(routers={"given": _Away()})
    digest = harness.publish("a0", folders[0])
    (answer,) = harness.run(_routed("r", [digest], [[1.0]]))
    assert answer.end.reason is FinishReason.ROUTER_AWAY
    assert answer.end.error == "the helper is away"
