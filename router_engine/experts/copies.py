"""Experts that were trained as several copies of each side (AdaMix), brought to one as they load.

Which weights the copies get is a `Variant`; the one by default is the manifest's average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from adapters_store.expert_types import BottleneckExpertSpec, Copies, LoraExpertSpec

Side = Literal["down", "up"]  # A and D, or B and U; a bias goes with its side
CopiedExpert = LoraExpertSpec | BottleneckExpertSpec

Variant = Callable[[CopiedExpert, Side], Sequence[float]]
"""(an expert that has copies, a side of it) -> the weight of each copy of that side.

It is asked once for each tensor, so it must answer alike for the same expert and side.
"""


def average(expert: CopiedExpert, side: Side) -> Sequence[float]:
    """The weights in the manifest: what AdaMix serves (Wang et al. 2022, section 3.4)."""
    copies = expert.copies
    assert isinstance(copies, Copies)
    return copies.down if side == "down" else copies.up


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

    def side(self, expert: CopiedExpert, side: Side, key: str) -> Tensor:
        """A tensor that belongs to a side of an expert, its copies brought to one."""
        tensor: Tensor = self._file.get_tensor(key)
        if expert.copies is None:
            return tensor.float()
        return choose_copies(tensor, self._variant(expert, side))
