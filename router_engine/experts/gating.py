"""Gating networks on the host: a spec and stored tensors -> what the kernels read."""

from __future__ import annotations

import torch

from adapters_store.expert_kinds.gating import GatingNetworkSpec
from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.copies import AdapterTensors
from router_engine.kernels.base import GatingWeights


def router_weights(
    spec: GatingNetworkSpec, tensors: AdapterTensors, dtype: torch.dtype
) -> HostGatingNetwork:
    """What reads the layer's input stacked as one matrix, what follows as it is."""
    prefixes = [spec.prefix]
    if spec.kind == "swiglu":
        prefixes = [f"{spec.prefix}.w1", f"{spec.prefix}.w3"]
    if spec.threshold is not None and spec.threshold.prefix is not None:
        prefixes.append(spec.threshold.prefix)
    narrow = narrow_bias = None
    if spec.kind == "swiglu":
        narrow = tensors.get(f"{spec.prefix}.w2.weight").contiguous()
        narrow_bias = tensors.get(f"{spec.prefix}.w2.bias").contiguous()
    wide = torch.cat([tensors.get(f"{prefix}.weight") for prefix in prefixes]).to(dtype)
    wide_bias = torch.cat([tensors.get(f"{prefix}.bias").reshape(-1) for prefix in prefixes])
    return gating_network(spec, wide, wide_bias, narrow, narrow_bias)


def gating_network(
    spec: GatingNetworkSpec,
    wide: torch.Tensor,
    wide_bias: torch.Tensor,
    narrow: torch.Tensor | None = None,
    narrow_bias: torch.Tensor | None = None,
) -> HostGatingNetwork:
    """A spec with its tensors, as `GatingWeights` describes them."""
    threshold = spec.threshold
    network = GatingWeights(
        wide=wide,
        wide_bias=wide_bias,
        narrow=narrow,
        narrow_bias=narrow_bias,
        outputs=spec.outputs,
        hidden=spec.hidden if spec.kind == "swiglu" else 0,
        top_k=(spec.top_k or spec.outputs) if spec.activation == "softmax" else 0,
        threshold=(
            "none" if threshold is None else "constant" if threshold.prefix is None else "network"
        ),
        maximum=0.0 if threshold is None else threshold.maximum,
    )
    return HostGatingNetwork(spec, network)
