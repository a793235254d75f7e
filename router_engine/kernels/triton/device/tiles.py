"""The mixture of modules that read the same x, by tiles of rank rows.

A tile is up to 16 rows of one adapter. Where they lie, the adapter's slot in a table says; a module
of which the adapter has fewer rows, and a tile of tokens that give it no weight, pass it by.
"""

from __future__ import annotations

import triton.language as tl

from router_engine.kernels.triton.device.mixture import summed, weighted
from router_engine.kernels.triton.device.product import product, shrunk
from router_engine.kernels.triton.device.sized import sized


@sized("tokens", "z_width", "capacity", "first_module", "weights_stride")
def shrink_tiles_kernel(
    x, weights, z, addresses, ranks, tiles, count,
    tokens, width, z_width, capacity, first_module, table_width, chunk, x_stride, weights_stride,
    ALIGN: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z[split, t, r] = sum of x[t, k] a[r, k] over the k in the split's chunk.

    Grid: (capacity of all modules, token tiles, splits). Only those r are written whose adapter has
    the row at the module, and that some token of the tile gives a weight to.
    tiles [capacity, 3]: slot, column, first row. ALIGN: bytes that every address is a multiple of.
    """
    own = tl.program_id(0) // capacity
    tile = tl.program_id(0) % capacity
    split = tl.program_id(2)
    if tile >= tl.load(count):
        return
    slot = tl.load(tiles + 3 * tile).to(tl.int64)
    column = tl.load(tiles + 3 * tile + 1)
    first = tl.load(tiles + 3 * tile + 2)
    place = slot * table_width + first_module + own
    rank = tl.load(ranks + place)
    if first >= rank:
        return
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = token < tokens
    weight = tl.load(weights + token * weights_stride + column, mask=there, other=0.0)
    if tl.sum((weight != 0).to(tl.int32), 0) == 0:
        return
    local = tl.arange(0, BLOCK_R)
    row = first + local
    live = row < rank
    a = tl.load(addresses + 2 * place).to(tl.pointer_type(x.dtype.element_ty))
    a_rows = tl.multiple_of(a + row.to(tl.int64) * width, [ALIGN])
    x_rows = x + token.to(tl.int64) * x_stride
    stop = tl.minimum(width, (split + 1) * chunk)
    total = shrunk(
        x_rows, a_rows, there, live, split * chunk, stop, WIDEN, BLOCK_T, BLOCK_R, BLOCK_K
    )  # fmt: skip
    target = (split * tokens + token).to(tl.int64) * z_width
    target = target[:, None] + (tl.program_id(0) * BLOCK_R + local)[None, :]
    tl.store(z + target, total, mask=there[:, None] & live[None, :])


@sized("tokens", "z_width", "capacity", "first_module", "weights_stride")
def fold_tiles_kernel(
    z, weights, folded, ranks, roots, tiles, count,
    tokens, z_width, capacity, first_module, table_width, weights_stride,
    SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """folded[t, k] = sum over adapters of weight[t] root z[t, row k of theirs], module by module.

    Grid: (BLOCKS, token tiles, modules). folded [tokens, modules * BLOCKS * BLOCK_R], all of it
    written. roots: of the rows' scales, as `AdapterTable`.
    """
    own = tl.program_id(2)
    module = first_module + own
    local = tl.arange(0, BLOCK_R)
    row = tl.program_id(0) * BLOCK_R + local
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = token < tokens
    total = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for tile in range(0, tl.load(count)):
        slot = tl.load(tiles + 3 * tile).to(tl.int64)
        column = tl.load(tiles + 3 * tile + 1)
        if tl.load(tiles + 3 * tile + 2) == tl.program_id(0) * BLOCK_R:
            place = slot * table_width + module
            weight = tl.load(weights + token * weights_stride + column, mask=there, other=0.0)
            acts = (weight != 0)[:, None] & (row < tl.load(ranks + place))[None, :]
            at = (own * capacity + tile) * BLOCK_R + local
            part = summed(z, token, at, tokens, z_width, acts, SPLITS)
            total += weighted(part, (weight * tl.load(roots + place))[:, None])
    width = tl.num_programs(2) * BLOCKS * BLOCK_R
    target = token.to(tl.int64)[:, None] * width + (own * BLOCKS * BLOCK_R + row)[None, :]
    tl.store(folded + target, total, mask=there[:, None])


@sized("tokens", "z_width", "capacity", "first_module", "weights_stride")
def expand_tiles_kernel(
    z, weights, y, addresses, ranks, roots, spans, tiles, count,
    tokens, z_width, capacity, first_module, table_width, weights_stride, y_stride,
    ALIGN: tl.constexpr, SPAN_ALIGN: tl.constexpr, WIDEN: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, TILES: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """y[t, o] += sum_r weight[t, r] z[t, r] b[r, o], the scaled z rounded to y's dtype.

    Grid: (output blocks of the widest module, token tiles, modules). TILES: tiles of a turn.
    BLOCKS: 0, or z is what `fold_tiles_kernel` makes, and a weight is divided by its rows' root.
    spans [modules, 2]: first output and number of outputs of each module in y, multiples of
    SPAN_ALIGN: loads as wide as that need no mask for each element.
    """
    own = tl.program_id(2)
    width = tl.multiple_of(tl.load(spans + 2 * own + 1), SPAN_ALIGN)
    last = tl.load(count)
    if (last == 0) | (tl.program_id(0) * BLOCK_O >= width):
        return
    module = first_module + own
    out = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = token < tokens
    inside = out < width
    member = tl.arange(0, TILES * BLOCK_R)
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for turn in range(0, tl.cdiv(last, TILES)):
        tile = turn * TILES + member // BLOCK_R
        listed = tile < last
        slot = tl.load(tiles + 3 * tile, mask=listed, other=0).to(tl.int64)
        column = tl.load(tiles + 3 * tile + 1, mask=listed, other=0)
        row = tl.load(tiles + 3 * tile + 2, mask=listed, other=0) + member % BLOCK_R
        place = slot * table_width + module
        live = listed & (row < tl.load(ranks + place, mask=listed, other=0))
        mask = there[:, None] & live[None, :]
        weight = weights + token[:, None] * weights_stride + column[None, :]
        weight = tl.load(weight, mask=mask, other=0.0)
        acts = weight != 0
        if tl.sum(tl.sum(acts.to(tl.int32), 1), 0) > 0:
            at = (own * capacity + turn * TILES) * BLOCK_R + member
            if BLOCKS > 0:
                at = own * BLOCKS * BLOCK_R + row
                weight = weight / tl.load(roots + place, mask=live, other=1.0)[None, :]
            part = weighted(summed(z, token, at, tokens, z_width, acts, SPLITS), weight)
            b = tl.load(addresses + 2 * place + 1, mask=live, other=0)
            b = b.to(tl.pointer_type(y.dtype.element_ty)) + row.to(tl.int64) * width
            b_rows = tl.multiple_of(b, [ALIGN])
            b_mask = live[:, None] & inside[None, :]
            b_tile = tl.load(b_rows[:, None] + out[None, :], mask=b_mask, other=0.0)
            total = product(part.to(y.dtype.element_ty), b_tile, total, WIDEN)
    start = tl.multiple_of(tl.load(spans + 2 * own), SPAN_ALIGN)
    target = y + token.to(tl.int64)[:, None] * y_stride + (start + out)[None, :]
    mask = there[:, None] & inside[None, :]
    total += tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, total.to(y.dtype.element_ty), mask=mask)
