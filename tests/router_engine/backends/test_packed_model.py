"""The C++ decoder against the reference: the same requests on two engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from router_engine.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.request import EngineRequest
from tests.router_engine.backends.conftest import Pair
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.slow

MakePair = Callable[..., Pair]
PROMPT = list(range(5, 30))
SMALL = CacheConfig(num_blocks=512)


def _assert_equal(one: list[Answer], other: list[Answer], tolerance: float = 1e-4) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids
        assert b.logprobs == pytest.approx(a.logprobs, abs=tolerance)


def _publish(pair: Pair, folders: list[Path]) -> list[str]:
    for harness in pair:
        digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    return digests


def _run(pair: Pair, requests: list[EngineRequest]) -> tuple[list[Answer], list[Answer]]:
    reference, fast = (harness.run(*requests) for harness in pair)
    return reference, fast


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
@pytest.mark.parametrize("tokens", [10, 512])
def test_every_family_in_chunks_and_whole(
    family: str, tokens: int, make_pair: MakePair, family_folder: Callable[[str], Path]
) -> None:
    config = EngineConfig(cache=SMALL, scheduler=SchedulerConfig(max_step_tokens=tokens))
    pair = make_pair(family_folder(family), config=config)
    prompts = [PROMPT, [40, 41, 42], list(range(100, 230)), [9]]
    _assert_equal(*_run(pair, [request(f"r{i}", p) for i, p in enumerate(prompts)]))


def test_a_long_context_is_put_together_from_its_parts(
    make_pair: MakePair, family_folder: Callable[[str], Path]
) -> None:
    """Beyond 512 positions a decode step attends in parts."""
    pair = make_pair()
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 259, size=size).tolist() for size in (900, 507, 20)]
    requests = [request(f"r{i}", prompt, max_new_tokens=16) for i, prompt in enumerate(prompts)]
    _assert_equal(*_run(pair, requests))


def test_threads_change_nothing(
    make_harness: Callable[..., EngineHarness], kernel_cache: Path, folders: list[Path]
) -> None:
    """Each output is computed by one thread in one order, whichever thread that is."""
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            config = EngineConfig(cache=SMALL, kernels=KernelConfig("cpu", kernel_cache))
            fast = make_harness(config=config)
            digest = fast.publish("a", folders[0])
            answers.append(fast.run(request("r", PROMPT, {digest: 1.0}), request("base", PROMPT)))
    finally:
        torch.set_num_threads(threads)
    for others in answers[1:]:
        _assert_equal(answers[0], others, 0.0)


def test_bf16_is_as_near_to_fp32_as_the_reference(
    make_pair: MakePair, make_harness: Callable[..., EngineHarness], folders: list[Path]
) -> None:
    pair = make_pair(config=EngineConfig(cache=SMALL, model=ModelConfig(dtype="bfloat16")))
    exact = make_harness(config=EngineConfig(cache=SMALL, model=ModelConfig(dtype="float32")))
    digests = _publish((pair[0], exact), folders[:2])
    for index, folder in enumerate(folders[:2]):
        pair[1].publish(f"a{index}", folder)
    rng = np.random.default_rng(2)
    requests = [
        request(
            f"r{i}",
            rng.integers(3, 259, size=30).tolist(),
            {digests[0]: 0.6, digests[1]: 0.5} if i % 2 else None,
            max_new_tokens=1,
        )
        for i in range(40)
    ]
    truth = exact.run(*requests)
    errors = []
    for harness in pair:
        answers = harness.run(*requests)
        errors.append(
            np.mean(
                [
                    abs(a.logprobs[0] - b.logprobs[0])
                    for a, b in zip(answers, truth, strict=True)
                    if a.ids == b.ids
                ]
            )
        )
    assert 0 < errors[1] <= 1.2 * errors[0], errors
