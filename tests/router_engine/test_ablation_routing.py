"""`random`, `uniform` and a fallback to the base in a real engine: replayed, mixed, and equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.request import Context, EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.routers.registry import RouterRegistry, TokenServices
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request

PROMPT = list(range(5, 12))
TOKENS = 10


def engine_of(make_harness: MakeHarness, **cache: Any) -> EngineHarness:
    """An engine that serves the routers which need no encoder."""
    woken: list[EngineHarness] = []
    services = TokenServices(wake=lambda: woken[0].wake())
    config = EngineConfig(
        cache=CacheConfig(block_size=2, **cache), scheduler=SchedulerConfig(max_running=4)
    )
    woken.append(
        make_harness(config=config, routers=RouterRegistry.discover().token_routers(services))
    )
    return woken[0]


def routed(
    name: str,
    digests: Sequence[str],
    router: str,
    params: dict[str, Any],
    *,
    every: int = 1,
    context: Context = "keep",
) -> EngineRequest:
    return EngineRequest(
        name,
        tuple(PROMPT),
        SamplingSpec(max_new_tokens=TOKENS),
        adapters=tuple(digests),
        routing=TokenRouting(router, params, every, context),
        reports=Reports(weights=True),
    )


def publish(engine: EngineHarness, folders: Sequence[Path]) -> list[str]:
    return [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]


@pytest.mark.parametrize("context", ["keep", "recompute"])
def test_random_is_the_same_under_preemption(
    context: Context, make_harness: MakeHarness, folders: list[Path]
) -> None:
    tight = engine_of(make_harness, num_blocks=20, prefix_cache=False)
    roomy = engine_of(make_harness, num_blocks=256, prefix_cache=False)
    for engine in (tight, roomy):
        digests = publish(engine, folders)
    asked = [
        routed(
            f"r{i}",
            digests,
            "random",
            {"seed": i, "draw": "simplex"},
            every=1 + i % 2,
            context=context,
        )
        for i in range(4)
    ]
    answers = tight.run(*asked)
    assert tight.engine.stats().preemptions > 0
    for index, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        (alone,) = roomy.run(one)
        weights = [token.weights for token in answer.tokens]
        assert weights == [token.weights for token in alone.tokens]
        assert answer.ids == alone.ids
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        for position, row in enumerate(weights):
            length = len(PROMPT) + position - position % (1 + index % 2)
            generator = np.random.default_rng((index, length))
            assert row == pytest.approx(generator.dirichlet([1, 1, 1]).tolist(), rel=1e-6)
    assert len({tuple(answer.ids) for answer in answers}) > 1  # negative control: seeds act


def test_uniform_is_a_fixed_mixture(make_harness: MakeHarness, folders: list[Path]) -> None:
    engine = engine_of(make_harness, num_blocks=256)
    digests = publish(engine, folders)
    third = 1 / 3
    answer, fixed, base = engine.run(
        routed("u", digests, "uniform", {}, every=3),
        request("f", PROMPT, dict.fromkeys(digests, third), max_new_tokens=TOKENS),
        request("b", PROMPT, max_new_tokens=TOKENS),
    )
    assert answer.ids == fixed.ids
    assert answer.logprobs == pytest.approx(fixed.logprobs, abs=1e-4)
    assert all(token.weights == pytest.approx((third,) * 3) for token in answer.tokens)
    assert fixed.logprobs != pytest.approx(base.logprobs, abs=1e-3)  # negative control


def test_weights_of_zero_are_the_base(make_harness: MakeHarness, folders: list[Path]) -> None:
    """What a router gives below its threshold, in a batch with one that does not fall back."""
    engine = engine_of(make_harness, num_blocks=256)
    digests = publish(engine, folders)
    none, some = [[[0.0] * 3] * TOKENS, [[0.5, 0.0, 0.5]] * TOKENS]
    fallen, mixed, base = engine.run(
        routed("n", digests, "given", {"weights": none}),
        routed("s", digests, "given", {"weights": some}),
        request("b", PROMPT, max_new_tokens=TOKENS),
    )
    assert fallen.ids == base.ids
    assert fallen.logprobs == pytest.approx(base.logprobs, abs=1e-4)
    assert mixed.logprobs != pytest.approx(base.logprobs, abs=1e-3)  # negative control
