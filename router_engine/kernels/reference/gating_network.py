"""Routers inside layers in plain torch: the truth that every other kernel agrees with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from router_engine.experts.base import HostGatingNetwork


def gating_values(router: HostGatingNetwork, v: Tensor) -> Tensor:
    """The gates g [tokens, outputs], fp32, of every token at one layer.

    linear: z = R v + r. swiglu: z = W2 (silu(W1 v + b1) * (W3 v + b3)) + b2. Then sigmoid(z), or
    softmax(z) over the top_k highest and 0 elsewhere; and with a threshold 0 where
    g < maximum * sigmoid(W v + b). v [tokens, features]: what the layer reads, before or after its
    first norm, as `router.spec.input` says. All that follows the products with v is in fp32.
    Source: MoA (2025), soft and sparse.
    """
    spec = router.spec
    wide = (v @ router.wide.T).float() + router.wide_bias
    if spec.kind == "linear":
        z = wide[:, : spec.outputs]
    else:
        assert router.w2 is not None
        first, second = wide[:, : spec.hidden], wide[:, spec.hidden : 2 * spec.hidden]
        z = functional.linear(functional.silu(first) * second, router.w2, router.bias2)
    if spec.activation == "softmax":
        return _softmax(z, spec.top_k)
    gates = z.sigmoid()
    if spec.threshold is None:
        return gates
    theta = torch.full_like(gates[:, :1], spec.threshold.maximum)
    if spec.threshold.prefix is not None:
        theta *= wide[:, -1:].sigmoid()
    # What is not a number is below nothing: the gate stays one that is not.
    return torch.where(gates < theta, 0.0, gates + (theta - theta))


def _softmax(z: Tensor, top_k: int | None) -> Tensor:
    if top_k is None or top_k >= z.shape[1]:
        return z.softmax(-1)
    best = z.topk(top_k, dim=-1)
    return torch.zeros_like(z).scatter_(1, best.indices, best.values.softmax(-1))
