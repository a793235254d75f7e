"""The mixture of low-rank experts: shrink, fold (under `linear` only), expand.

Products are summed in fp32. The shrink leaves one partial sum a split of the inner dimension,
z [splits, tokens, rows]; the expand adds them up, scales them by each token's weights and rounds
once, as the reference does. No atomics: equal inputs give equal outputs.

Rows lie one after another: a [rows, in]; b [rows, out]. `tiles` has kernels for rows that lie
anywhere.

Under SPARSE a tile of tokens meets only the row blocks that act on it (`kernels.base.RowBlocks`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from router_engine.kernels.triton.device.product import product, shrunk
from router_engine.kernels.triton.device.sized import sized


@triton.jit
def _tokens(order, tile, SPARSE: tl.constexpr, BLOCK_T: tl.constexpr):
    """The tokens of a tile; one that is no token is the number of tokens, or more."""
    place = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    return tl.load(order + place) if SPARSE else place


@triton.jit
def summed(z, token, column, tokens, width, mask, SPLITS: tl.constexpr):
    """z [tokens, columns] of a tile: the sum of its splits."""
    total = tl.load(z + token.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0.0)
    for split in range(1, SPLITS):
        place = (split * tokens + token).to(tl.int64) * width
        total += tl.load(z + place[:, None] + column[None, :], mask=mask, other=0.0)
    return total


@triton.jit
def weighted(z, weight):
    """z weight, and 0 where the weight is 0: there z may be inf or NaN, and 0 times that is NaN."""
    return tl.where(weight == 0, 0.0, z * weight)


@sized("tokens", "rows", "num_blocks")
def shrink_kernel(
    x, a, z, counts, order, blocks,
    tokens, width, rows, num_blocks, chunk,
    x_stride, a_stride,
    SPARSE: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z[split, t, r] = sum of x[t, k] a[r, k] over the k in the split's chunk.

    Grid: (row blocks, token tiles, splits).
    """
    block = tl.program_id(0)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    if SPARSE:
        if block >= tl.load(counts + tile):
            return
        block = tl.load(blocks + tile * num_blocks + block)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < rows
    token = _tokens(order, tile, SPARSE, BLOCK_T)
    there = token < tokens
    a_rows = a + row.to(tl.int64) * a_stride
    x_rows = x + token.to(tl.int64) * x_stride
    stop = tl.minimum(width, (split + 1) * chunk)
    total = shrunk(
        x_rows, a_rows, there, live, split * chunk, stop, WIDEN, BLOCK_T, BLOCK_R, BLOCK_K
    )  # fmt: skip
    place = (split * tokens + token).to(tl.int64) * rows
    tl.store(z + place[:, None] + row[None, :], total, mask=there[:, None] & live[None, :])


@sized("tokens", "rows", "max_rank", "weights_stride")
def fold_kernel(
    z, weights, rank_index, folded,
    tokens, rows, max_rank, weights_stride,
    SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """folded[t, c] = sum over the rows r with rank_index[r] = c of weights[t, r] z[t, r].

    Grid: (rank blocks, token tiles).
    """
    rank = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = token < tokens
    total = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
    for first in range(0, rows, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        live = row < rows
        mask = there[:, None] & live[None, :]
        part = summed(z, token, row, tokens, rows, mask, SPLITS)
        place = weights + token[:, None] * weights_stride + row[None, :]
        part = weighted(part, tl.load(place, mask=mask, other=0.0))
        own = tl.load(rank_index + row, mask=live, other=-1)
        belongs = (own[:, None] == rank[None, :]).to(tl.float32)
        total = product(part, belongs, total, WIDEN=False)
    place = folded + token[:, None] * max_rank + rank[None, :]
    tl.store(place, total, mask=there[:, None] & (rank < max_rank)[None, :])


@sized("tokens", "rows", "z_width", "num_blocks", "weights_stride")
def expand_kernel(
    z, weights, b, y, columns, counts, order, blocks,
    tokens, rows, width, z_width, num_blocks, weights_stride, b_stride, y_stride,
    SPARSE: tl.constexpr, FOLDED: tl.constexpr, WIDEN: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """y[t, o] += sum_r weights[t, r] z[t, r] b[r, o], the scaled z rounded to y's dtype.

    Grid: (output blocks, token tiles). FOLDED: row r reads z[t, columns[r]].
    """
    tile = tl.program_id(1)
    out = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    steps = num_blocks
    if SPARSE:
        steps = tl.load(counts + tile)
    if steps == 0:
        return
    token = _tokens(order, tile, SPARSE, BLOCK_T)
    there = token < tokens
    inside = out < width
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for step in range(0, steps):
        block = tl.load(blocks + tile * num_blocks + step) if SPARSE else step
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)
        live = row < rows
        mask = there[:, None] & live[None, :]
        column = tl.load(columns + row, mask=live, other=0) if FOLDED else row
        part = summed(z, token, column, tokens, z_width, mask, SPLITS)
        weight = weights + token[:, None] * weights_stride + row[None, :]
        part = weighted(part, tl.load(weight, mask=mask, other=0.0))
        b_rows = b + row.to(tl.int64) * b_stride
        b_mask = live[:, None] & inside[None, :]
        b_tile = tl.load(b_rows[:, None] + out[None, :], mask=b_mask, other=0.0)
        total = product(part.to(y.dtype.element_ty), b_tile, total, WIDEN)
    target = y + token.to(tl.int64)[:, None] * y_stride + out[None, :]
    mask = there[:, None] & inside[None, :]
    total += tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, total.to(y.dtype.element_ty), mask=mask)
