"""The mixture of all modules that read the same x, in two launches, whatever the mixture is.

Which adapters act is a short list of tiles on the device, and where their rows lie is in a table
there, so that one captured graph serves every mixture whose tiles fit into its list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.kernels.triton.device.tiles import (
    expand_tiles_kernel,
    fold_tiles_kernel,
    shrink_tiles_kernel,
)
from router_engine.kernels.triton.launch import (
    ShrinkShape,
    launch,
    span_align,
    token_tile,
    widened,
)
from router_engine.kernels.triton.tiling import TILE_ROWS

_FOLDED_TILES = 16  # of one adapter under `linear`, at most
LINEAR_ROWS = _FOLDED_TILES * TILE_ROWS
_TURN = 4  # tiles that one product expands
FEW_TILES = 16  # of a longer list as many may be in use
_BLOCK_O = 64


@dataclass(frozen=True, slots=True)
class Group:
    """Modules with the same input, whose outputs lie side by side in one y."""

    paths: tuple[str, ...]
    width: int  # of the input
    widths: tuple[int, ...]  # outputs of each
    first: int  # place of the first module in an `AdapterTable`; the others follow it
    spans: Tensor  # [modules, 2] int32 on the device: first output, number of outputs

    @classmethod
    def of(
        cls,
        paths: tuple[str, ...],
        width: int,
        widths: tuple[int, ...],
        first: int,
        device: torch.device,
    ) -> Group:
        starts = [sum(widths[:index]) for index in range(len(widths))]
        spans = torch.tensor([*zip(starts, widths, strict=True)], dtype=torch.int32)
        return cls(paths, width, widths, first, spans.to(device))


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """The places of adapters' rows, one slot an adapter; on the device.

    addresses [slots, modules, 2] int64: of the first row of A and of B, each contiguous, in x's
    dtype, each a multiple of 16 bytes. ranks [slots, modules] int32: rows, 0 for none.
    roots [slots, modules] fp32: of the scales that B holds.
    """

    addresses: Tensor
    ranks: Tensor
    roots: Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """The rank rows of a step, at most TILE_ROWS of one adapter a tile; int32, on the device.

    places [capacity, 3]: slot in the table, column of the weights, first row. count [1]: tiles in
    use. Where a module has fewer rows of an adapter than another, its tile is empty or not full.
    """

    places: Tensor
    count: Tensor

    @property
    def capacity(self) -> int:
        return self.places.shape[0]


def mix_group(
    y: Tensor, x: Tensor, weights: Tensor, group: Group, table: AdapterTable, tiles: Tiles
) -> None:
    """y[:, module] += the mixture of each module, in place, as `reference.low_rank.mix_sum`.

    y [tokens, all outputs]; x [tokens, in]; weights [tokens, columns] fp32, 0 for an adapter that
    does not act on a token; in each, what belongs to a token lies side by side.
    """
    _expand(y, _shrink(x, weights, group, table, tiles), weights, group, table, tiles)


def mix_group_linear(
    y: Tensor, x: Tensor, roots: Tensor, group: Group, table: AdapterTable, tiles: Tiles
) -> None:
    """y[:, module] += the mixture of each module, in place, as `reference.low_rank.mix_linear`.

    roots [tokens, columns] fp32: square roots of the weights. Adapters of one mixture have equal
    ranks, at most LINEAR_ROWS. The rest is as of `mix_group`.
    """
    z = _shrink(x, roots, group, table, tiles)
    tokens, tile, modules = len(x), token_tile(len(x)), len(group.paths)
    folded = z.new_empty(1, tokens, modules * LINEAR_ROWS)
    launch(
        fold_tiles_kernel,
        (_FOLDED_TILES, -(-tokens // tile), modules),
        z,
        roots,
        folded,
        table.ranks,
        table.roots,
        tiles.places,
        tiles.count,
        tokens,
        z.shape[2],
        tiles.capacity,
        group.first,
        table.ranks.shape[1],
        roots.stride(0),
        SPLITS=len(z),
        BLOCK_T=tile,
        BLOCK_R=TILE_ROWS,
        BLOCKS=_FOLDED_TILES,
    )
    _expand(y, folded, roots, group, table, tiles, blocks=_FOLDED_TILES)


def _expand(
    y: Tensor,
    z: Tensor,
    weights: Tensor,
    group: Group,
    table: AdapterTable,
    tiles: Tiles,
    *,
    blocks: int = 0,
) -> None:
    """blocks: of folded rows; 0: each adapter has its own."""
    tokens, tile = len(y), token_tile(len(y))
    launch(
        expand_tiles_kernel,
        (-(-max(group.widths) // _BLOCK_O), -(-tokens // tile), len(group.paths)),
        z,
        weights,
        y,
        table.addresses,
        table.ranks,
        table.roots,
        group.spans,
        tiles.places,
        tiles.count,
        tokens,
        z.shape[2],
        tiles.capacity,
        group.first,
        table.ranks.shape[1],
        weights.stride(0),
        y.stride(0),
        ALIGN=span_align(*(outputs * y.itemsize for outputs in group.widths)),
        SPAN_ALIGN=span_align(*group.widths),
        WIDEN=widened(y.dtype),
        SPLITS=len(z),
        BLOCK_T=tile,
        BLOCK_R=TILE_ROWS,
        TILES=_TURN,
        BLOCK_O=_BLOCK_O,
        BLOCKS=blocks,
    )


def _shrink(x: Tensor, weights: Tensor, group: Group, table: AdapterTable, tiles: Tiles) -> Tensor:
    """z [splits, tokens, modules * capacity * TILE_ROWS] fp32, written where a row acts."""
    (tokens, width), lists = x.shape, len(group.paths) * tiles.capacity
    # Most of a long list may be empty: a cut for as many programs would leave a card idle.
    shape = ShrinkShape.of(tokens, width, len(group.paths) * min(tiles.capacity, FEW_TILES))
    z = torch.empty(shape.splits, tokens, lists * TILE_ROWS, dtype=torch.float32, device=x.device)
    launch(
        shrink_tiles_kernel,
        (lists, -(-tokens // shape.tile), shape.splits),
        x,
        weights,
        z,
        table.addresses,
        table.ranks,
        tiles.places,
        tiles.count,
        tokens,
        width,
        z.shape[2],
        tiles.capacity,
        group.first,
        table.ranks.shape[1],
        shape.chunk,
        x.stride(0),
        weights.stride(0),
        ALIGN=span_align(width * x.itemsize),
        WIDEN=widened(x.dtype),
        BLOCK_T=shape.tile,
        BLOCK_R=TILE_ROWS,
        BLOCK_K=shape.block_k,
    )
    return z
