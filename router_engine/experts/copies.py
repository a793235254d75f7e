"""Experts that were trained as several copies of each side (AdaMix), brought to one as they load.

Which weights the copies get is a variant's affair: see `variants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import ExpertSpec, copies_of
from router_engine.experts.variants import Side, Variant


def choose_copies(copies: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_m weights_m copies_m in fp32: copies [M, ...] -> [...]. A copy of weight 0 is not read.

    Raises ValueError unless there is a weight for every copy.
    """
    if len(weights) != copies.shape[0]:
        raise ValueError(f"{len(weights)} weights for {copies.shape[0]} copies")
    chosen = torch.zeros(copies.shape[1:])
    for copy, weight in zip(copies, weights, strict=True):
        if weight != 0:
            chosen += weight * copy.float()
    return chosen


class AdapterTensors:
    """The tensors of an adapter's file, in fp32, of every expert one copy."""

    def __init__(self, file: Any, variant: Variant) -> None:
        """`file`: what `safetensors.safe_open` gives, which has no type of its own."""
        self._file = file
        self._variant = variant

    def get(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor.float()

    def side(self, expert: ExpertSpec, side: Side, key: str) -> Tensor:
        """A tensor that belongs to a side of an expert, its copies brought to one."""
        tensor: Tensor = self._file.get_tensor(key)
        if copies_of(expert) is None:
            return tensor.float()
        return choose_copies(tensor, self._variant(expert, side))
