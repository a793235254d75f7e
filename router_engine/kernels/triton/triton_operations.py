"""The Triton kernels as a set of operations, and where they run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.kernels.base import Chunk, KernelSpec, RankFold, RowBlocks, StepAttention
from router_engine.kernels.reference.operations import ReferenceOperations
from router_engine.kernels.triton.launch import interpreted
from router_engine.kernels.triton.triton_attention import PagedAttention
from router_engine.kernels.triton.triton_low_rank import (
    SPARSE_BELOW,
    mix_linear,
    mix_sum,
    row_blocks,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonOperations(ReferenceOperations):
    """As `kernels.base.Operations`, with kernels for low-rank mixtures and attention.

    It has none for layer routing, gating, bottlenecks and prompts: those are the reference's.
    """

    def __init__(self, *, sparse_below: float = SPARSE_BELOW) -> None:
        """`sparse_below`: share of nonzero weights under which tokens are grouped by adapter."""
        self._sparse_below = sparse_below

    def row_blocks(self, row_weights: Tensor, fill: float) -> RowBlocks | None:
        return row_blocks(row_weights, fill, sparse_below=self._sparse_below)

    def mix_sum(
        self,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        row_weights: Tensor,
        blocks: RowBlocks | None = None,
    ) -> None:
        mix_sum(y, x, a, b, row_weights, blocks)

    def mix_linear(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
        mix_linear(y, x, a, b, fold)

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention:
        return PagedAttention(chunks, block_size, device)


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run there, or None."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"device {device} is not cuda"
    if dtype not in DTYPES:
        return f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}"
    return None


SPEC = KernelSpec(
    name="triton",
    summary="Triton kernels on CUDA devices",
    refusal=refusal,
    make=TritonOperations,
)
