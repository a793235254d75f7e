"""Launches of every kind that the operations make, on nothing: for `compilation`, which runs none.

Tensors are on `meta`: a kernel is compiled for types, strides and constants alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from router_engine.kernels.base import RankFold, RowBlocks
from router_engine.kernels.triton.launch import ShrinkShape, token_tile
from router_engine.kernels.triton.triton_attention import AttentionWork, attend, numbers
from router_engine.kernels.triton.triton_low_rank import BLOCK_R, mix_linear, mix_sum

_MOST_BLOCKS = 64  # of rank rows: with more there is nothing to split


class AttentionShape(NamedTuple):
    """What attention kernels are compiled for. window: None where all positions are seen."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None


def launch_attention(
    shapes: Collection[AttentionShape], block_size: int, dtype: torch.dtype
) -> None:
    """Launch paged attention of decodes and of prompts."""
    for heads, kv_heads, dim, window in shapes:
        for decodes in (True, False):
            work = AttentionWork.over(_int32(numbers(1, 1)), items=1, rows=1, decodes=decodes)
            query = _empty(2, heads, dim, dtype=dtype)
            keys = _empty(block_size, kv_heads, dim, dtype=dtype)
            output, tables = torch.empty_like(query), _int32(1, 1)
            attend(query, keys, keys, output, tables, work, block_size, 1.0, window)


def launch_low_rank(linears: Collection[tuple[int, int]], tokens: int, dtype: torch.dtype) -> None:
    """Launch mixtures of rows on linear layers (inputs, outputs), for steps of up to `tokens`."""
    for inputs, outputs in linears:
        for count, blocks in ShrinkShape.kinds(tokens, inputs, range(_MOST_BLOCKS, 0, -1)):
            rows = blocks * BLOCK_R
            x, y = _empty(count, inputs, dtype=dtype), _empty(count, outputs, dtype=dtype)
            a, b = _empty(rows, inputs, dtype=dtype), _empty(rows, outputs, dtype=dtype)
            weights = _empty(count, rows)
            for lists in (None, _lists(count, blocks)):
                mix_sum(y, x, a, b, weights, lists)
            index = _empty(rows, dtype=torch.int64)
            mix_linear(y, x, a, b, RankFold(weights, weights, index, BLOCK_R))


def _lists(tokens: int, blocks: int) -> RowBlocks:
    tile = token_tile(tokens)
    tiles = -(-tokens // tile)
    return RowBlocks(_int32(tiles * tile), _int32(tiles, blocks), _int32(tiles), tile, BLOCK_R)


def _int32(*shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.int32)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
