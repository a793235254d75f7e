"""Mixtures against PEFT and against the equation, alone and mixed in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_store.types import Combination
from router_engine.events import FinishReason
from router_engine.kernels.base import RankFold
from router_engine.kernels.reference.low_rank import mix_linear, mix_sum
from router_engine.request import EngineRequest
from tests.router_engine.conftest import MakeEngine, MakeHarness
from tests.router_engine.paths import EnginePath, PathEngine
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy, set_mixture

PROMPT = list(range(5, 30))


def _digests(engine: PathEngine | EngineHarness, folders: list[Path]) -> list[str]:
    return [engine.publish(f"a{index}", folder) for index, folder in enumerate(folders)]


@pytest.mark.parametrize(
    ("combination", "members", "weights"),
    [
        ("sum", (0, 1, 2), (0.5, -0.3, 1.7)),
        ("sum", (0, 1, 2, 3, 4, 5), (0.2, 0.1, 0.3, -1.0, 0.5, 0.25)),
        ("linear", (0, 3), (0.7, 0.3)),
        ("linear", (0, 3), (1.5, 0.0)),
    ],
)
def test_a_mixture_matches_peft(
    combination: Combination,
    members: tuple[int, ...],
    weights: tuple[float, ...],
    path: EnginePath,
    make_engine: MakeEngine,
    folders: list[Path],
) -> None:
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = _digests(engine, folders)
    mixture = {digests[member]: weight for member, weight in zip(members, weights, strict=True)}
    mixed, single = engine.run(
        request("mixture", prompt, mixture, combination=combination, max_new_tokens=path.tokens),
        request("first alone", prompt, {digests[0]: 1.0}, max_new_tokens=path.tokens),
    )
    model = path.peft("llama", [folders[member] for member in members])
    set_mixture(model, weights, combination)
    ids, rows = greedy(model, prompt, path.tokens)
    assert_agrees(mixed, ids, rows, path.tolerance)
    assert mixed.logprobs != single.logprobs  # negative control


def test_sum_and_linear_are_different_mixtures(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    digests = _digests(harness, [folders[0], folders[3]])
    mixture = dict.fromkeys(digests, 0.5)
    exact, crossed = harness.run(
        request("sum", PROMPT, mixture),
        request("linear", PROMPT, mixture, combination="linear"),
    )
    assert exact.logprobs != crossed.logprobs


def test_sixteen_mixtures_in_one_batch_equal_each_alone(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """The mixed-batch oracle: 16 requests, 16 mixtures, prompts of 16 lengths.

    Eight where steps are interpreted, of which `path.short` makes the prompts.
    """
    engine, other = make_engine(), make_engine()  # no prefix of the first run can help the second
    for each in (engine, other):
        digests = _digests(each, folders)
    rng = np.random.default_rng(0)
    requests: list[EngineRequest] = []
    for index in range(16 if path.every == 1 else 8):
        prompt = path.short(rng.integers(3, 259, size=3 + 5 * index).tolist())
        members = rng.permutation(6)[: index % 7]
        mixture = {digests[m]: float(rng.normal()) for m in members}
        combination: Combination = "sum"
        if index == 4:
            mixture, combination = {digests[0]: 0.4, digests[3]: 1.1}, "linear"
        requests.append(
            request(
                f"r{index}",
                prompt,
                mixture,
                combination=combination,
                max_new_tokens=path.tokens,
            )
        )
    together = engine.run(*requests)
    for one, both in list(zip(requests, together, strict=True))[:: path.every]:
        (alone,) = other.run(one)
        assert both.ids == alone.ids
        assert both.logprobs == pytest.approx(alone.logprobs, abs=path.tolerance)
        if one.adapters:  # negative control: the mixture matters
            without = request(f"{one.request_id} without", one.prompt_token_ids, max_new_tokens=1)
            (bare,) = other.run(without)
            assert abs(bare.logprobs[0] - alone.logprobs[0]) > 0.01


def test_a_repeated_run_is_equal_under_linear_and_other_scales(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    """A scale that `linear` cannot use, in the same batch as a linear mixture."""
    harness = make_harness()
    digests = _digests(harness, folders)
    linear = request("l", PROMPT, {digests[0]: 0.6, digests[3]: 0.4}, combination="linear")
    (alone,) = harness.run(linear)
    beside, _ = harness.run(
        request("l2", PROMPT, {digests[0]: 0.6, digests[3]: 0.4}, combination="linear"),
        request("s2", PROMPT, {digests[5]: -2.0}),
    )
    assert beside.ids == alone.ids


@pytest.mark.parametrize(
    ("mixture", "reason"),
    [((0, 1), "of rank 4 with"), ((0, 3), "weight -0.5")],
)
def test_linear_refuses_what_it_cannot_do(
    mixture: tuple[int, int], reason: str, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    digests = _digests(harness, folders)
    weights = {digests[mixture[0]]: 0.5, digests[mixture[1]]: -0.5 if mixture == (0, 3) else 0.5}
    (answer,) = harness.run(request("r", PROMPT, weights, combination="linear"))
    assert answer.end.reason is FinishReason.REFUSED
    assert reason in str(answer.end.error)


def test_reference_sum_is_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, a, b, weights = random(5, 8), random(6, 8), random(6, 7), random(5, 6)
    y = random(5, 7)
    expected = y.clone()
    for token in range(5):
        for row in range(6):
            expected[token] += weights[token, row] * (a[row] @ x[token]) * b[row]
    mix_sum(y, x, a, b, weights)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_reference_linear_is_its_equation() -> None:
    """(sum_j c_j B_j)(sum_j c_j A_j) x with c = sqrt(w s), two adapters of rank 3."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, a, b = random(5, 8), random(2, 3, 8), random(2, 3, 7)
    weights, scales = random(5, 2).abs(), torch.tensor([0.5, 2.0])
    c = (weights * scales).sqrt()
    expected = torch.stack(
        [
            torch.einsum("j,jro->ro", c[t], b).T @ (torch.einsum("j,jri->ri", c[t], a) @ x[t])
            for t in range(5)
        ]
    )
    spread = weights.sqrt().repeat_interleave(3, dim=1)
    roots = scales.sqrt().repeat_interleave(3)
    folded = (b * scales[:, None, None]).flatten(0, 1)  # rows of B hold the scale
    y = torch.zeros(5, 7)
    rank_index = torch.arange(3).repeat(2)
    fold = RankFold(spread * roots, spread / roots, rank_index, 3)
    mix_linear(y, x, a.flatten(0, 1), folded, fold)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
