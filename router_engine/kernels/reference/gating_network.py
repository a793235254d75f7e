"""Gating networks (MoA) in plain torch: the truth that every other kernel agrees with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from router_engine.kernels.base import GatingWeights


def gating_values(network: GatingWeights, v: Tensor) -> Tensor:
    """The gates g [tokens, outputs], fp32, of every token at one layer.

    linear: z = R v + r. swiglu: z = W2 (silu(W1 v + b1) * (W3 v + b3)) + b2. Then sigmoid(z), or
    softmax(z) over the top_k highest and 0 elsewhere; and with a threshold 0 where
    g < maximum * sigmoid(W v + b), or g < maximum where it is constant. v [tokens, features]: what
    the layer reads, before or after its first norm. All that follows the products with v is in
    fp32. Source: MoA (2025), soft and sparse.
    """
    wide = (v @ network.wide.T).float() + network.wide_bias
    if network.hidden == 0:
        z = wide[:, : network.outputs]
    else:
        assert network.narrow is not None
        first, second = wide[:, : network.hidden], wide[:, network.hidden : 2 * network.hidden]
        z = functional.linear(functional.silu(first) * second, network.narrow, network.narrow_bias)
    if network.top_k > 0:
        return _softmax(z, network.top_k)
    gates = z.sigmoid()
    if network.threshold == "none":
        return gates
    theta = torch.full_like(gates[:, :1], network.maximum)
    if network.threshold == "network":
        theta *= wide[:, -1:].sigmoid()
    # What is not a number is below nothing: the gate stays one that is not.
    return torch.where(gates < theta, 0.0, gates + (theta - theta))


def _softmax(z: Tensor, top_k: int) -> Tensor:
    if top_k >= z.shape[1]:
        return z.softmax(-1)
    best = z.topk(top_k, dim=-1)
    return torch.zeros_like(z).scatter_(1, best.indices, best.values.softmax(-1))
