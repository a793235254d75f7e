"""The direction of the input that a low-rank expert amplifies most: arrow's prototype of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prototypes(factors: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """For each expert (a [rank, in], b [rank, out]) its prototype p [rank], in fp32.

    v = a^T p is the top right-singular vector of the expert's weight change b^T a, of length 1 and
    either sign (Ostapenko et al. 2024); p is 0 where b^T a is. v lies in the span of a's rows, so
    that x . v = (a x) . p costs nothing beside a x, and p as many numbers as the expert has rows.

    With K = a a^T and G = b b^T = Q D Q^T the symmetric D^1/2 Q^T K Q D^1/2 has the squares of the
    singular values as eigenvalues; of its top one, s^2 with eigenvector u, p = Q D^1/2 u / s.
    """
    by_rank: dict[int, list[int]] = {}
    for index, (a, _) in enumerate(factors):
        by_rank.setdefault(a.shape[0], []).append(index)
    directions: list[Tensor] = [torch.empty(0)] * len(factors)
    for members in by_rank.values():
        inner = torch.stack([_gram(factors[index][0]) for index in members])
        outer = torch.stack([_gram(factors[index][1]) for index in members])
        for index, direction in zip(members, _solve(inner, outer).unbind(), strict=True):
            directions[index] = direction
    return directions


def _gram(rows: Tensor) -> Tensor:
    """rows rows^T [rank, rank]."""
    wide = rows.float()
    return wide @ wide.T


def _solve(inner: Tensor, outer: Tensor) -> Tensor:
    """K and G [experts, rank, rank] -> p [experts, rank]."""
    # In fp64: roots and squares lose half of the digits. What is not finite would stop the
    # decomposition; the logits show it anyway.
    inner, outer = (
        torch.nan_to_num(gram.double(), nan=0.0, posinf=0.0, neginf=0.0) for gram in (inner, outer)
    )
    values, vectors = torch.linalg.eigh(outer)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    squares, directions = torch.linalg.eigh(root.mT @ inner @ root)
    top = squares[:, -1:].clamp(min=0).sqrt()
    p = (root @ directions[:, :, -1:])[:, :, 0]
    return torch.where(top > 0, p / top, 0.0).float()
