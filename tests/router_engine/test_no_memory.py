"""Steps for which the device has no memory: they are run again with less, and nobody is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from router_engine.backends.base import ForwardOutput
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.experts.variants import Stochastic, variant_digest
from router_engine.mixture.weights import StepWeights
from router_engine.request import EngineRequest
from router_engine.scheduling.plan import StepPlan
from router_engine.scheduling.step_limit import StepLimit
from tests.router_engine.conftest import MakeHarness
from tests.support.expert_adapters import INSTANCE, Layers, make_expert_folder
from tests.support.harness import EngineHarness, request

CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=256), scheduler=SchedulerConfig(max_step_tokens=64, max_running=16)
)
PROMPT = list(range(5, 45))


class _Card:
    """Memory for steps of so many tokens, in front of what computes."""

    def __init__(self, harness: EngineHarness, tokens: int) -> None:
        self.tokens = tokens
        self.refused: list[int] = []
        self._forward = harness.engine.backend.forward
        self._harness = harness

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        if plan.num_tokens > self.tokens:
            self.refused.append(plan.num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._forward(plan, weights)


@contextmanager
def _card(harness: EngineHarness, tokens: int) -> Iterator[_Card]:
    card = _Card(harness, tokens)
    backend: Any = harness.engine.backend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "forward", card.forward)
        yield card


def _ensemble(digest: str) -> EngineRequest:
    first, *others = (variant_digest(digest, Stochastic(seed)) for seed in range(3))
    return replace(
        request("ensemble", PROMPT[:9], {first: 0.8}), ensemble=tuple((one,) for one in others)
    )


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_answers_are_those_of_a_device_with_memory(
    tokens: int, make_harness: MakeHarness, folders: list[Path], tmp_path: Path
) -> None:
    """Prompts, decodes, mixtures and an ensemble, down to a token a step."""
    copies = make_expert_folder(tmp_path / "copies", Layers(("q_proj",), copies=3))
    answers = []
    for memory in (1 << 30, tokens):
        harness = make_harness(config=CONFIG)
        digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
        ensemble = harness.publish("copies", copies)
        asked = [request(f"r{i}", PROMPT[i:], {digests[i % 2]: 1.0}) for i in range(8)]
        asked.append(request("base", PROMPT))
        asked.append(_ensemble(ensemble))
        with _card(harness, memory) as card:
            answers.append([answer.ids for answer in harness.run(*asked)])
        assert bool(card.refused) is (memory == tokens)
        assert harness.engine.stats().steps_without_memory == len(card.refused)
        assert len(card.refused) < 30  # it halves, and doubles after many good steps
    assert answers[0] == answers[1]


def test_what_cannot_be_less_fails_alone(make_harness: MakeHarness, tmp_path: Path) -> None:
    """A prompt that its adapter's gates read as a whole; others go on beside it and after it."""
    harness = make_harness(config=CONFIG)
    whole = harness.publish("whole", make_expert_folder(tmp_path / "whole", INSTANCE))
    asked = [request("whole", PROMPT, {whole: 1.0}), request("short", PROMPT[:9], {whole: 1.0})]
    with _card(harness, 20):
        failed, short, base = harness.run(*asked, request("base", PROMPT))
    assert failed.end.reason is FinishReason.FAILED
    assert "no memory for a step of this request alone" in str(failed.end.error)
    assert short.end.reason is base.end.reason is FinishReason.LENGTH
    (again,) = harness.run(request("again", PROMPT, {whole: 1.0}))
    assert again.end.reason is FinishReason.LENGTH


def test_a_device_without_memory_for_one_token_fails_all_and_lives(
    make_harness: MakeHarness,
) -> None:
    harness = make_harness(config=CONFIG)
    asked = [request(f"r{i}", PROMPT[i:]) for i in range(3)]
    with _card(harness, 0):
        answers = harness.run(*asked)
    assert {answer.end.reason for answer in answers} == {FinishReason.FAILED}
    (again,) = harness.run(request("again", PROMPT))
    assert again.end.reason is FinishReason.LENGTH


def test_the_most_senior_keep_their_places(make_harness: MakeHarness) -> None:
    """Those that came last give way, and none of those that stay waits for its turn."""
    harness = make_harness(config=CONFIG)
    harness.add(*(request(f"r{i}", PROMPT[:9], max_new_tokens=40) for i in range(8)))
    while not all(harness.answers[f"r{i}"].tokens for i in range(8)):
        harness.step()
    with _card(harness, 4):
        harness.step()  # refused
        assert harness.engine.stats().running == 4
        before = [len(harness.answers[f"r{i}"].tokens) for i in range(8)]
        for _ in range(5):
            harness.step()
        after = [len(harness.answers[f"r{i}"].tokens) for i in range(8)]
    assert [one - other for one, other in zip(after, before, strict=True)] == [5] * 4 + [0] * 4


def test_a_limit_is_half_and_comes_back() -> None:
    limit = StepLimit(100)
    limit.lower(30)
    assert (limit.tokens, limit.is_lowered) == (15, True)
    for expected in (30, 60, 100):
        for _ in range(63):
            limit.step()
        assert limit.tokens < expected
        limit.step()
        assert limit.tokens == expected
    limit.lower(1)
    assert limit.tokens == 1
