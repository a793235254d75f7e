"""Given tokens instead of drawn ones: their log probabilities, against PEFT fed with the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import EnginePath
from tests.support.harness import Answer
from tests.support.oracle import set_mixture

PROMPT = list(range(5, 30))
COMPLETION = (40, 7, 199, 23, 8, 8, 61, 120)
ROWS = [[0.1 * i, 1.0 - 0.2 * i] for i in range(len(COMPLETION))]


def _scored(
    name: str,
    prompt: Sequence[int],
    digests: Sequence[str],
    *,
    weights: Sequence[float] = (),
    rows: Sequence[Sequence[float]] = (),
    completion: tuple[int, ...] = COMPLETION,
) -> EngineRequest:
    routing = TokenRouting("given", {"weights": list(rows)}) if rows else None
    return EngineRequest(
        name,
        tuple(prompt),
        SamplingSpec(max_new_tokens=len(completion), given_token_ids=completion),
        adapters=tuple(digests),
        weights=tuple(weights),
        routing=routing,
        reports=Reports(weights=True),
    )


@torch.no_grad()
def _oracle(model: Any, prompt: Sequence[int], rows: Sequence[Sequence[float]]) -> list[float]:
    """Log probabilities of COMPLETION by PEFT with a cache, row i yielding token i."""
    past, feed, found = None, list(prompt), []
    for token, weights in zip(COMPLETION, rows, strict=True):
        set_mixture(model, weights, "sum")
        out = model(input_ids=torch.tensor([feed]), past_key_values=past, use_cache=True)
        past, feed = out.past_key_values, [token]
        found.append(float(out.logits[0, -1].float().log_softmax(-1)[token]))
    return found


def _assert_scores(answer: Answer, expected: Sequence[float], path: EnginePath) -> None:
    assert tuple(answer.ids) == COMPLETION
    bound = path.tolerance * max(map(abs, expected))
    assert answer.logprobs == pytest.approx(expected, abs=bound)


def test_scores_are_those_of_peft(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """A fixed mixture and weights for each token, beside a request that draws its own."""
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    fixed, routed, drawn = engine.run(
        _scored("fixed", prompt, digests, weights=ROWS[3]),
        _scored("routed", prompt, digests, rows=ROWS),
        EngineRequest("drawn", tuple(prompt), SamplingSpec(max_new_tokens=len(COMPLETION))),
    )
    model = path.peft("llama", folders[:2])
    _assert_scores(fixed, _oracle(model, prompt, [ROWS[3]] * len(ROWS)), path)
    _assert_scores(routed, _oracle(model, prompt, ROWS), path)
    assert fixed.logprobs != routed.logprobs  # negative control
    assert tuple(drawn.ids) != COMPLETION


def test_scores_survive_preemption(make_harness: Any, folders: list[Path]) -> None:
    tight = EngineConfig(
        cache=CacheConfig(block_size=2, num_blocks=12, prefix_cache=False),
        scheduler=SchedulerConfig(max_running=4),
    )
    harness, roomy = make_harness(config=tight), make_harness()
    for each in (harness, roomy):
        digests = [each.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    requests = [_scored(f"r{i}", PROMPT[: 4 + i], digests, weights=ROWS[i]) for i in range(4)]
    answers, expected = harness.run(*requests), roomy.run(*requests)
    assert harness.engine.stats().preemptions > 0
    for answer, other in zip(answers, expected, strict=True):
        assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_what_comes_later_in_a_completion_changes_nothing_before_it(
    make_harness: Any, folders: list[Path]
) -> None:
    harness = make_harness()
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    other = (*COMPLETION[:4], 99, 98, 97, 96)
    one, two = harness.run(
        _scored("one", PROMPT, digests, weights=ROWS[2]),
        _scored("two", PROMPT, digests, weights=ROWS[2], completion=other),
    )
    assert one.logprobs[:4] == pytest.approx(two.logprobs[:4], abs=1e-5)
    assert one.logprobs[4:] != pytest.approx(two.logprobs[4:], abs=1e-5)
