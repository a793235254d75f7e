"""Plain torch as a set of kernels: runs on every device and in every dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.kernels.base import Chunk, KernelSpec, RowBlocks
from router_engine.kernels.reference.attention import TorchAttention
from router_engine.kernels.reference.low_rank import mix_linear, mix_sum


class ReferenceOperations:
    """As `kernels.base.Operations`; always dense."""

    def row_blocks(self, row_weights: Tensor, fill: float) -> RowBlocks | None:
        return None

    def mix_sum(
        self,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        row_weights: Tensor,
        blocks: RowBlocks | None = None,
    ) -> None:
        mix_sum(y, x, a, b, row_weights)

    def mix_linear(
        self,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        shrink_weights: Tensor,
        expand_weights: Tensor,
        rank_index: Tensor,
        max_rank: int,
    ) -> None:
        mix_linear(y, x, a, b, shrink_weights, expand_weights, rank_index, max_rank)

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> TorchAttention:
        return TorchAttention(chunks, block_size, device)


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


SPEC = KernelSpec(
    name="reference",
    summary="plain torch",
    refusal=_refusal,
    make=ReferenceOperations,
)
