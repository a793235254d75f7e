"""The mixture of low-rank experts in plain torch: the truth that every other kernel agrees with."""

from __future__ import annotations

import torch
from torch import Tensor

from router_engine.kernels.base import RankFold
from router_engine.kernels.weighted import weighted


def mix_sum(y: Tensor, x: Tensor, a: Tensor, b: Tensor, row_weights: Tensor) -> None:
    """y_t += sum_r weight_tr b_r (a_r . x_t), in place (design section 4).

    y [tokens, out]; x [tokens, in]; a [rows, in]; b [rows, out];
    row_weights [tokens, rows] fp32: each token's weight for the adapter that owns the row; a row
    of weight 0 takes no part, whatever a holds. b is finite (`experts.contained`).
    """
    z = weighted((x @ a.T).float(), row_weights)
    y.addmm_(z.to(x.dtype), b)


def mix_linear(y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
    """y_t += (sum_j c_tj B_j)(sum_j c_tj A_j) x_t with c = sqrt(weight * scale), in place.

    PEFT's `linear` combination, cross terms and all, for weights that differ from token to token:
    rows with the same position within their adapters are added before they are expanded.
    The rows of B hold the scale already, so fold.expand is sqrt(weight / scale).
    """
    z = weighted((x @ a.T).float(), fold.shrink)
    folded = z.new_zeros(z.shape[0], fold.max_rank)
    folded.index_add_(1, fold.index, z)
    z = weighted(torch.index_select(folded, 1, fold.index), fold.expand)
    y.addmm_(z.to(x.dtype), b)
