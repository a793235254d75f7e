"""The base's linear weights as torch parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from router_engine.backends.torch.wrapped_layers import MixtureLinear
from router_engine.model.loader import LoadedModel
from router_engine.model.quantized import Int8Linear


class ParameterWeights:
    """As `merging.merged_base.BaseWeights`, over the parameters of the wrapped layers."""

    def __init__(self, loaded: LoadedModel, linears: Mapping[str, MixtureLinear]) -> None:
        embedding: nn.Parameter = loaded.model.get_input_embeddings().weight
        self._linears = linears
        self._embedding = embedding
        self._is_quantized = loaded.quantization != "none"
        self._tied = {
            path
            for path, linear in linears.items()
            if getattr(linear.base, "weight", None) is embedding
        }

    def read_weight(self, module: str) -> Tensor:
        """The very values that the layer computes with, [out, in]; integers come back in fp32."""
        linear = self._linears[module]
        if isinstance(linear.base, Int8Linear):
            return linear.base.values * linear.base.scale[:, None]
        weight = linear.weight.detach()
        if self._is_quantized:
            weight = weight.dequantize()
        return weight.T if linear.is_transposed else weight

    def write_weight(self, module: str, weight: Tensor) -> None:
        """Replace it by `weight` [out, in], in place: captured graphs read what they read before.

        A layer that shares the embedding's parameter gets one of its own for as long as it differs.
        """
        linear = self._linears[module]
        if module not in self._tied:
            linear.weight.data.copy_(weight.T if linear.is_transposed else weight)
            return
        own = weight.to(self._embedding.device)
        same = torch.equal(own, self._embedding)
        linear.base.weight = self._embedding if same else nn.Parameter(own, requires_grad=False)
