"""Layer routing (arrow) in plain torch: the truth that every other kernel agrees with."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_routing_weights(
    x: Tensor,
    a: Tensor,
    prototype: Tensor,
    owner: Tensor,
    candidates: Tensor,
    top_k: Tensor,
    temperature: Tensor,
) -> Tensor:
    """Weights [tokens, adapters], fp32, of every token at one linear layer, by what it reads there.

    arrow (Ostapenko et al. 2024): s_tj = |x_t . v_j|; w_t = softmax(s_t / temperature_t) over the
    top_k_t highest of those candidates of t that act at the layer, 0 elsewhere.
    v_j = sum_r prototype_r a_r over the rows r of adapter j. Nothing is read of adapters that are
    no candidates of a token; of its own, one whose score is not a number comes first.

    x [tokens, in]; a [rows, in]; prototype, owner [rows]: a row's column; candidates
    [tokens, adapters] bool; top_k, temperature [tokens], top_k 0 for a token that is not routed.
    """
    columns = torch.arange(candidates.shape[1], device=x.device)
    owned = (owner[:, None] == columns).float()  # [rows, adapters]
    # A product with the zeros in `owned` would carry inf and NaN from column to column.
    parts = torch.where(candidates[:, owner], (x @ a.T).float() * prototype, 0.0)
    scores = (parts @ owned).abs()
    may_act = candidates & (owned.sum(0) > 0)
    order = scores.masked_fill(~may_act, -torch.inf).argsort(dim=1, descending=True)
    chosen = torch.zeros_like(may_act).scatter_(1, order, columns < top_k[:, None]) & may_act
    # Less the highest, before the division: a low temperature would eat the digits.
    below = scores - scores.gather(1, order[:, :1])
    weights = (below / temperature[:, None]).masked_fill(~chosen, -torch.inf).softmax(1)
    return torch.where(chosen, weights, 0.0)
