"""Mixtures against PEFT and against the equation, alone and mixed in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_store.types import Combination
from router_engine.events import FinishReason
from router_engine.kernels.reference.low_rank import mix_linear, mix_sum
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy, peft_model, set_mixture
from tests.support.tiny import family_model

PROMPT = list(range(5, 30))


def _digests(harness: EngineHarness, folders: list[Path]) -> list[str]:
    return [harness.publish(f"a{index}", folder) for index, folder in enumerate(folders)]


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
    make_harness: MakeHarness,
    folders: list[Path],
) -> None:
    harness = make_harness()
    digests = _digests(harness, folders)
    mixture = {digests[member]: weight for member, weight in zip(members, weights, strict=True)}
    mixed, single = harness.run(
        request("mixture", PROMPT, mixture, combination=combination),
        request("first alone", PROMPT, {digests[0]: 1.0}),
    )
    model = peft_model(family_model("llama"), [folders[member] for member in members])
    set_mixture(model, weights, combination)
    ids, rows = greedy(model, PROMPT, 12)
    assert_agrees(mixed, ids, rows)
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
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    """The mixed-batch oracle: 16 requests, 16 mixtures, every prompt of another length."""
    harness = make_harness()
    digests = _digests(harness, folders)
    rng = np.random.default_rng(0)
    cases: list[tuple[list[int], dict[str, float], Combination]] = []
    for index in range(16):
        prompt = rng.integers(3, 259, size=3 + 5 * index).tolist()
        members = rng.permutation(6)[: index % 7]
        mixture = {digests[m]: float(rng.normal()) for m in members}
        cases.append((prompt, mixture, "sum"))
    cases[3] = (cases[3][0], {digests[0]: 0.4, digests[3]: 1.1}, "linear")
    together = harness.run(
        *(
            request(f"together {i}", prompt, mixture, combination=combination)
            for i, (prompt, mixture, combination) in enumerate(cases)
        )
    )
    other = make_harness()  # a fresh engine: no prefix of the first run can help
    _digests(other, folders)
    for i, (prompt, mixture, combination) in enumerate(cases):
        (alone,) = other.run(request(f"alone {i}", prompt, mixture, combination=combination))
        assert together[i].ids == alone.ids
        assert together[i].logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    texts = {tuple(answer.ids) for answer in together}
    assert len(texts) == 16  # negative control: the mixtures matter


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
    [((0, 1), "ranks 4 and 8"), ((0, 3), "weight -0.5")],
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
    mix_linear(y, x, a.flatten(0, 1), folded, spread * roots, spread / roots, rank_index, 3)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
