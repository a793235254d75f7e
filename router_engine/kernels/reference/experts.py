"""Experts beside LoRA in plain torch: the truth that every other kernel agrees with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapters_store.expert_kinds.base import Activation
from router_engine.kernels.weighted import weighted

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "relu": functional.relu,
}


def mix_bottleneck(
    y: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    row_weights: Tensor,
    bias: Tensor | None,
    activations: Sequence[tuple[Activation, int, int]],
) -> None:
    """y_t += sum_r weight_tr act_r(a_r . v_t + bias_r) b_r, in place.

    y [tokens, out]; v [tokens, in]: what y itself was before, for serial ones; a [rows, in];
    b [rows, out]; row_weights [tokens, rows] fp32: weight of the row's adapter times the row's
    gate, outside the activation; bias [rows] fp32 or None; activations: (which, first row,
    last row + 1), the identity for rows that none names. As `low_rank.mix_sum`, rows of weight 0
    take no part, and b is finite.
    Sources: MoA (2025), parallel adapter; Houlsby et al. (2019), serial.
    """
    z = (v @ a.T).float()
    if bias is not None:
        z += bias
    for name, first, stop in activations:
        z[:, first:stop] = ACTIVATIONS[name](z[:, first:stop])
    y.addmm_(weighted(z, row_weights).to(v.dtype), b)


def attend_prompts(
    attended: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    row_weights: Tensor,
    lengths: Sequence[int],
) -> None:
    """attended_th += sum_j weight_tj sum_l softmax_l(q_th . K_jl / sqrt(head_dim)) V_jlh, in place.

    attended, query [tokens, heads, head_dim], the query with its experts and rotation; keys [rows,
    kv_heads * head_dim]; values [rows, heads * head_dim], the head gates in them; row_weights
    [tokens, rows] fp32: weight of the row's prompt times its gate; lengths: rows of each prompt,
    one after another: each has a softmax of its own. A prompt of weight 0 takes no part, whatever
    its keys; values are finite (`experts.contained`). Source: MoA (2025), prompt expert.
    """
    tokens, heads, head_dim = query.shape
    kv_heads = keys.shape[1] // head_dim
    grouped = query.view(tokens, kv_heads, heads // kv_heads, head_dim)
    scores = torch.einsum("tkgd,lkd->tkgl", grouped, keys.view(-1, kv_heads, head_dim)).float()
    parts = torch.split(scores * head_dim**-0.5, list(lengths), dim=-1)
    shares = torch.cat([part.softmax(-1) for part in parts], dim=-1).view(tokens, heads, -1)
    shares = weighted(shares, row_weights[:, None])
    attended += torch.einsum(
        "thl,lhd->thd", shares.to(query.dtype), values.view(-1, heads, head_dim)
    )
