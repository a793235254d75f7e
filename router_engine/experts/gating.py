"""Routers inside layers on the host."""

from __future__ import annotations

import torch

from adapters_store.expert_kinds.gating import GatingNetworkSpec
from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.copies import AdapterTensors


def router_weights(
    spec: GatingNetworkSpec, tensors: AdapterTensors, dtype: torch.dtype
) -> HostGatingNetwork:
    """What reads the layer's input stacked as one matrix, what follows as it is."""
    prefixes = [spec.prefix]
    if spec.kind == "swiglu":
        prefixes = [f"{spec.prefix}.w1", f"{spec.prefix}.w3"]
    if spec.threshold is not None and spec.threshold.prefix is not None:
        prefixes.append(spec.threshold.prefix)
    w2 = bias2 = None
    if spec.kind == "swiglu":
        w2 = tensors.get(f"{spec.prefix}.w2.weight").contiguous()
        bias2 = tensors.get(f"{spec.prefix}.w2.bias").contiguous()
    return HostGatingNetwork(
        spec=spec,
        wide=torch.cat([tensors.get(f"{prefix}.weight") for prefix in prefixes]).to(dtype),
        wide_bias=torch.cat([tensors.get(f"{prefix}.bias").reshape(-1) for prefix in prefixes]),
        w2=w2,
        bias2=bias2,
    )
