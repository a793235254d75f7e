"""Mixtures on the device: the reference's `mix_sum` and `mix_linear`, by the kernels in `mixture`.

Also `row_blocks`: which of two equal computations a step's weights call for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from router_engine.kernels.base import RankFold, RowBlocks
from router_engine.kernels.triton.device.mixture import expand_kernel, fold_kernel, shrink_kernel
from router_engine.kernels.triton.launch import ShrinkShape, launch, token_tile, widened

BLOCK_R = 16  # rows of one block: the least that tensor cores take
_BLOCK_O = 64
# Where every token meets every row, skipping only costs. Below this share of what dense products
# would compute, tiles of tokens that differ leave whole blocks out.
SPARSE_BELOW = 0.5
# Fewer products than this end before a launch has begun: sorting tokens is not worth it.
_WORTH = 1 << 15


def mix_sum(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    row_weights: Tensor,
    blocks: RowBlocks | None,
) -> None:
    """As `kernels.reference.low_rank.mix_sum`. `blocks`: of these `row_weights`, to skip zeros."""
    rows = a.shape[0]
    z, splits = _shrink(x, a, blocks)
    _expand(y, z, row_weights, b, columns=None, splits=splits, rows=rows, blocks=blocks)


def mix_linear(y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
    """As `kernels.reference.low_rank.mix_linear`."""
    tokens, rows = x.shape[0], a.shape[0]
    z, splits = _shrink(x, a, None)
    folded = z.new_empty(1, tokens, fold.max_rank)
    tile = token_tile(tokens)
    launch(
        fold_kernel,
        (-(-fold.max_rank // BLOCK_R), -(-tokens // tile)),
        z,
        fold.shrink,
        fold.index,
        folded,
        tokens,
        rows,
        fold.max_rank,
        fold.shrink.stride(0),
        SPLITS=splits,
        BLOCK_T=tile,
        BLOCK_R=BLOCK_R,
        BLOCK_C=BLOCK_R,
    )
    _expand(y, folded, fold.expand, b, columns=fold.index, splits=1, rows=rows, blocks=None)


def row_blocks(
    row_weights: Tensor, fill: float, *, sparse_below: float = SPARSE_BELOW
) -> RowBlocks | None:
    """Tokens sorted by adapters, and for each tile of them the row blocks that act on it.

    None where `fill`, the share of `row_weights` [tokens, rows] that is not zero, is not below
    `sparse_below`, or where there is too little to compute. Nothing waits for the device.
    """
    tokens, rows = row_weights.shape
    num_blocks = -(-rows // BLOCK_R)
    if fill >= sparse_below or tokens * rows < _WORTH or num_blocks < 2:
        return None
    return group_tokens(row_weights)


def group_tokens(row_weights: Tensor) -> RowBlocks:
    """The grouped form of any weights, worth it or not."""
    tokens, rows = row_weights.shape
    tile = token_tile(tokens)
    tiles = -(-tokens // tile)
    num_blocks = -(-rows // BLOCK_R)
    device = row_weights.device
    acts = torch.zeros(tiles * tile, num_blocks * BLOCK_R, dtype=torch.bool, device=device)
    acts[:tokens, :rows] = row_weights != 0
    acts = acts.view(tiles * tile, num_blocks, BLOCK_R).any(2)
    place = torch.arange(num_blocks, device=device)
    first = torch.where(acts, place, num_blocks).amin(1)
    last = torch.where(acts, place, -1).amax(1)
    key = first * (num_blocks + 1) + last + 1
    key[tokens:] = (num_blocks + 1) ** 2  # no tokens: behind all others
    order = key.argsort(stable=True)
    met = acts[order].view(tiles, tile, num_blocks).any(1)
    return RowBlocks(
        order=order.clamp(max=tokens).int(),
        blocks=met.logical_not().int().argsort(dim=1, stable=True).int(),
        counts=met.sum(1).int(),
        tile=tile,
        block=BLOCK_R,
    )


def _shrink(x: Tensor, a: Tensor, blocks: RowBlocks | None) -> tuple[Tensor, int]:
    """z [splits, tokens, rows] fp32 and the number of splits."""
    tokens, width = x.shape
    rows = a.shape[0]
    num_blocks = -(-rows // BLOCK_R)
    shape = ShrinkShape.of(tokens, width, num_blocks)
    z = torch.empty(shape.splits, tokens, rows, dtype=torch.float32, device=x.device)
    launch(
        shrink_kernel,
        (num_blocks, -(-tokens // shape.tile), shape.splits),
        x,
        a,
        z,
        *_lists(blocks, z),
        tokens,
        width,
        rows,
        num_blocks,
        shape.chunk,
        x.stride(0),
        a.stride(0),
        SPARSE=blocks is not None,
        WIDEN=widened(x.dtype),
        BLOCK_T=shape.tile,
        BLOCK_R=BLOCK_R,
        BLOCK_K=shape.block_k,
    )
    return z, shape.splits


def _expand(
    y: Tensor,
    z: Tensor,
    weights: Tensor,
    b: Tensor,
    *,
    columns: Tensor | None,
    splits: int,
    rows: int,
    blocks: RowBlocks | None,
) -> None:
    tokens, width = y.shape
    tile = token_tile(tokens)
    counts, order, lists = _lists(blocks, z)
    launch(
        expand_kernel,
        (-(-width // _BLOCK_O), -(-tokens // tile)),
        z,
        weights,
        b,
        y,
        z if columns is None else columns,
        counts,
        order,
        lists,
        tokens,
        rows,
        width,
        z.shape[2],
        -(-rows // BLOCK_R),
        weights.stride(0),
        b.stride(0),
        y.stride(0),
        SPARSE=blocks is not None,
        FOLDED=columns is not None,
        WIDEN=widened(y.dtype),
        SPLITS=splits,
        BLOCK_T=tile,
        BLOCK_R=BLOCK_R,
        BLOCK_O=_BLOCK_O,
    )


def _lists(blocks: RowBlocks | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, order and blocks; where there are none, a pointer that no kernel follows."""
    if blocks is None:
        return unused, unused, unused
    return blocks.counts, blocks.order, blocks.blocks
