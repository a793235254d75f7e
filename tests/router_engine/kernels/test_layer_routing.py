"""Prototypes and gates of one linear layer, against full decompositions and the equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from router_engine.experts.prototypes import prototypes
from router_engine.kernels.reference.layer_routing import layer_routing_weights
from tests.support.arrow import arrow_weights

WIDTH, OUT = 24, 10


def _factors(rank: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """a [rank, in], b [rank, out] of no particular structure."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, WIDTH, generator=generator)
    return a.to(dtype), torch.randn(rank, OUT, generator=generator).to(dtype)


def _top(a: Tensor, b: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.svd(b.double().T @ a.double()).Vh
    return vectors[0].float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prototypes_are_the_top_right_singular_vectors(dtype: torch.dtype) -> None:
    """Several ranks at once; up to the sign, which arrow does not look at."""
    factors = [_factors(rank, seed, dtype) for seed, rank in enumerate((4, 1, 4, 7, 12))]
    for (a, b), prototype in zip(factors, prototypes(factors), strict=True):
        vector = a.float().T @ prototype
        expected = _top(a, b)
        assert prototype.shape == (len(a),)
        torch.testing.assert_close(
            vector * torch.sign(vector @ expected), expected, rtol=0, atol=1e-5
        )


def test_prototypes_of_factors_that_are_nearly_singular() -> None:
    """Rows of very different sizes, equal rows, and an output that meets the smallest row."""
    a, b = _factors(4, 0)
    a = a * torch.tensor([1e-4, 1.0, 1.0, 10.0])[:, None]
    b = b * torch.tensor([1e4, 1.0, 1.0, 0.1])[:, None]
    twins = (torch.stack((a[1], a[1])), torch.stack((b[1], b[2])))
    for one, two in ((a, b), twins):
        (prototype,) = prototypes([(one, two)])
        vector = one.T @ prototype
        assert float((vector @ _top(one, two)).abs()) == pytest.approx(1, abs=1e-5)


def test_an_expert_that_does_nothing_has_no_direction() -> None:
    a, b = _factors(3, 1)
    broken = a.clone()
    broken[0, 0] = torch.nan
    silent, none, odd = prototypes(
        [(a, torch.zeros_like(b)), (torch.zeros_like(a), b), (broken, b)]
    )
    assert silent.tolist() == none.tolist() == [0.0] * 3
    assert odd.isfinite().all()


def test_gates_are_the_equation_for_every_token() -> None:
    """Ranks 4, 2, 5; one adapter that does not act here; another gate for each token."""
    ranks = {0: 4, 2: 2, 3: 5}  # column 1 has no rows
    factors = [_factors(rank, column) for column, rank in ranks.items()]
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(9))
    everyone, pair = [True] * 4, [False, True, False, True]
    candidates = torch.tensor([everyone, everyone, everyone, pair, [False] * 4, everyone])
    top_k = torch.tensor([3, 2, 1, 3, 3, 0], dtype=torch.int32)
    temperature = torch.tensor([1.0, 0.1, 1.0, 7.0, 1.0, 1.0])
    weights = layer_routing_weights(
        x,
        torch.cat([a for a, _ in factors]),
        torch.cat(prototypes(factors)),
        torch.tensor([column for column, rank in ranks.items() for _ in range(rank)]),
        candidates,
        top_k,
        temperature,
    )
    expected = torch.zeros(6, 4)
    for token in range(4):
        open_to = [column for column in ranks if candidates[token, column]]
        directions = torch.stack([_top(*factors[list(ranks).index(c)]) for c in open_to])
        expected[token, open_to] = arrow_weights(
            x[token], directions, int(top_k[token]), float(temperature[token])
        )
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    assert weights[:4].sum(1).tolist() == pytest.approx([1.0] * 4)
    assert weights[3].tolist() == [0, 0, 0, 1]
    assert weights[4:].tolist() == [[0.0] * 4] * 2  # nobody may act; no gate


@pytest.mark.parametrize("top_k", [1, 2])
def test_no_weight_is_lost_between_equal_scores(top_k: int) -> None:
    """The same adapter under two digests, and a temperature that leaves no digits to spare."""
    (a, b), (other, _) = _factors(2, 3), _factors(2, 4)
    (prototype,) = prototypes([(a, b)])
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5))
    weights = layer_routing_weights(
        x,
        torch.cat((0 * other, a, a)),
        torch.cat((torch.ones(2), prototype, prototype)),
        torch.arange(3).repeat_interleave(2),
        torch.ones(1, 3, dtype=torch.bool),
        torch.tensor([top_k]),
        torch.tensor([1e-6]),
    )
    assert weights[0, 0] == 0
    assert float(weights.sum()) == pytest.approx(1)
