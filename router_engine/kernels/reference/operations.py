"""Plain torch as a set of kernels: runs on every device and in every dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.kernels.base import (
    Chunk,
    GatingWeights,
    KernelSpec,
    RankFold,
    RowBlocks,
    StepAttention,
)
from router_engine.kernels.reference.attention import TorchAttention
from router_engine.kernels.reference.experts import attend_prompts, mix_bottleneck
from router_engine.kernels.reference.gating_network import gating_values
from router_engine.kernels.reference.layer_routing import layer_routing_weights
from router_engine.kernels.reference.low_rank import mix_linear, mix_sum


class ReferenceOperations:
    """As `kernels.base.Operations`; always dense.

    Other sets may subclass it for the operations that they have no kernel for.
    """

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

    def mix_linear(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
        mix_linear(y, x, a, b, fold)

    def layer_routing(
        self,
        x: Tensor,
        a: Tensor,
        prototype: Tensor,
        owner: Tensor,
        candidates: Tensor,
        top_k: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        return layer_routing_weights(x, a, prototype, owner, candidates, top_k, temperature)

    def gating(self, v: Tensor, network: GatingWeights) -> Tensor:
        return gating_values(network, v)

    def mix_bottleneck(
        self,
        y: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        row_weights: Tensor,
        bias: Tensor | None,
        activations: Sequence[tuple[Activation, int, int]],
    ) -> None:
        mix_bottleneck(y, v, a, b, row_weights, bias, activations)

    def attend_prompts(
        self,
        attended: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        row_weights: Tensor,
        lengths: Sequence[int],
    ) -> None:
        attend_prompts(attended, query, keys, values, row_weights, lengths)

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention:
        return TorchAttention(chunks, block_size, device)


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


SPEC = KernelSpec(
    name="reference",
    summary="plain torch",
    refusal=_refusal,
    make=ReferenceOperations,
)
