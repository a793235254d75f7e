"""A package's set of kernels, written from the docstrings of `kernels.base` alone: plain loops.

Also sets that lack operations, as a package has them that was made for an older version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from tests.support.expert_oracle import ACT


@dataclass
class LoopAttention:
    """Token by token over its own request's positions."""

    chunks: Sequence[Chunk]
    block_size: int

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        output = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
        shared = query.shape[1] // keys.shape[1]
        for chunk in self.chunks:
            for index in range(chunk.length):
                own = chunk.start + index
                first = 0 if window is None else max(0, own - window + 1)
                slots = [self._slot(chunk, position) for position in range(first, own + 1)]
                for head, q in enumerate(query[chunk.first + index]):
                    scores = keys[slots, head // shared].float() @ q.float() * scale
                    mixed = scores.softmax(0) @ values[slots, head // shared].float()
                    output[chunk.first + index, head] = mixed.to(query.dtype)
        return output

    def _slot(self, chunk: Chunk, position: int) -> int:
        block, place = divmod(position, self.block_size)
        return chunk.block_ids[block] * self.block_size + place


class LoopOperations:
    """As `kernels.base.Operations`, token by token and row by row."""

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
        self.mix_bottleneck(y, x, a, b, row_weights, None, ())

    def mix_linear(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
        for token in range(len(x)):
            folded = torch.zeros(fold.max_rank, device=x.device)
            for row in fold.shrink[token].nonzero()[:, 0].tolist():
                folded[fold.index[row]] += fold.shrink[token, row] * (
                    a[row].float() @ x[token].float()
                )
            for row in fold.expand[token].nonzero()[:, 0].tolist():
                z = fold.expand[token, row] * folded[fold.index[row]]
                y[token] += (z * b[row].float()).to(y.dtype)

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
        weights = torch.zeros(candidates.shape, device=x.device)
        for token in range(len(x)):
            scores: dict[int, float] = {}
            for adapter in candidates[token].nonzero()[:, 0].tolist():
                rows = owner == adapter
                if rows.any():
                    products = (a[rows].float() @ x[token].float()) * prototype[rows]
                    scores[adapter] = float(products.sum().abs())
            best = sorted(scores, key=lambda i: (scores[i] == scores[i], -scores[i]))
            best = best[: int(top_k[token])]
            if best:
                chosen = torch.tensor([scores[adapter] for adapter in best], device=x.device)
                shares = ((chosen - chosen[0]) / temperature[token]).softmax(0)
                weights[token, best] = shares
        return weights

    def gating(self, v: Tensor, network: GatingWeights) -> Tensor:
        gates = torch.zeros(len(v), network.outputs, device=v.device)
        for token, row in enumerate(v):
            wide = network.wide.float() @ row.float() + network.wide_bias
            z, hidden = wide[: network.outputs], network.hidden
            if network.narrow is not None and network.narrow_bias is not None:
                inner = ACT["silu"](wide[:hidden]) * wide[hidden : 2 * hidden]
                z = network.narrow @ inner + network.narrow_bias
            if network.top_k > 0:
                best = z.argsort(descending=True)[: network.top_k]
                gates[token, best] = z[best].softmax(0)
                continue
            gates[token] = z.sigmoid()
            if network.threshold != "none":
                own = wide[-1].sigmoid() if network.threshold == "network" else 1.0
                theta = torch.as_tensor(network.maximum * own, device=v.device)
                gates[token][gates[token] < theta] = 0.0
                gates[token] += theta - theta  # no number where theta is none
        return gates

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
        for token, own in enumerate(v.clone()):  # y may be v
            for row in row_weights[token].nonzero()[:, 0].tolist():
                z = a[row].float() @ own.float()
                z = z if bias is None else z + bias[row]
                for name, first, stop in activations:
                    z = ACT[name](z) if first <= row < stop else z
                y[token] += (row_weights[token, row] * z * b[row].float()).to(y.dtype)

    def attend_prompts(
        self,
        attended: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        row_weights: Tensor,
        lengths: Sequence[int],
    ) -> None:
        tokens, heads, dim = query.shape
        kv_heads = keys.shape[1] // dim
        for token in range(tokens):
            first = 0
            for length in lengths:
                rows, first = slice(first, first + length), first + length
                weight = row_weights[token, rows.start]
                if weight == 0:
                    continue
                for head in range(heads):
                    own = keys[rows].view(length, kv_heads, dim)[:, head * kv_heads // heads]
                    scores = own.float() @ query[token, head].float() / dim**0.5
                    held = values[rows].view(length, heads, dim)[:, head].float()
                    attended[token, head] += (weight * scores.softmax(0) @ held).to(query.dtype)

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention:
        return LoopAttention(chunks, block_size)


class OldOperations:
    """A set of an older version: it has three operations of seven."""

    def row_blocks(self, row_weights: Tensor, fill: float) -> RowBlocks | None:
        return None

    mix_sum = LoopOperations.mix_sum
    mix_linear = LoopOperations.mix_linear
    attention = LoopOperations.attention


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"


def _old() -> Any:
    return OldOperations()


LOOPS = KernelSpec("loops", "plain loops", _refusal, LoopOperations)
OLD = KernelSpec("old", "three operations", _refusal, _old)
