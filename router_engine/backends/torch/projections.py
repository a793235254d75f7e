"""The keys and values of a prompt by the base's own projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from router_engine.merging.merged_base import MergedBase
from router_engine.model.loader import LoadedModel


class ModelProjections:
    """As `experts.base.BaseProjections`, over a model whose weights may lie in any body."""

    def __init__(self, loaded: LoadedModel, base: MergedBase) -> None:
        self._model: nn.Module = loaded.model
        self._base = base
        self._head_dim = loaded.kv_shape.head_dim

    @torch.no_grad()
    def keys_and_values(self, attention: str, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """See `BaseProjections`. An int8 base's weights count as the numbers that they stand for.

        Source: MoA (2025), prompt expert; k_norm as in its port to Qwen3.
        """
        keys, values = (
            self._project(f"{attention}.{name}", prompt) for name in ("k_proj", "v_proj")
        )
        k_norm: Any = getattr(self._model.get_submodule(attention), "k_norm", None)
        if k_norm is not None:
            weight, epsilon = k_norm.weight.float().cpu(), k_norm.variance_epsilon
            keys = functional.rms_norm(keys, weight.shape, weight, epsilon)
        return keys, values

    def _project(self, path: str, prompt: Tensor) -> Tensor:
        """[length, kv_heads, head_dim] in fp32."""
        linear: Any = self._model.get_submodule(path)
        bias: Tensor | None = linear.base.bias
        projected = functional.linear(
            prompt, self._base.untouched(path), None if bias is None else bias.float().cpu()
        )
        return projected.view(len(prompt), -1, self._head_dim)
