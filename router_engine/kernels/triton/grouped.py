"""The mixture of all modules that read the same x, in two launches, whatever the mixture is.

Which rows act, whose they are and how many is read from tables on the device, so that one captured
graph serves every mixture that fits into the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.kernels.triton.device.mixture import expand_kernel, shrink_kernel
from router_engine.kernels.triton.launch import (
    ShrinkShape,
    launch,
    span_align,
    token_tile,
    widened,
)

BLOCK_R = 16  # rows of one block; a table's capacity is a multiple of it
_BLOCK_O = 64


@dataclass(frozen=True, slots=True)
class Group:
    """Modules with the same input, whose outputs lie side by side in one y."""

    paths: tuple[str, ...]
    width: int  # of the input
    widths: tuple[int, ...]  # outputs of each
    spans: Tensor  # [modules, 2] int32 on the device: first output, number of outputs

    @classmethod
    def of(
        cls, paths: tuple[str, ...], width: int, widths: tuple[int, ...], device: torch.device
    ) -> Group:
        starts = [sum(widths[:index]) for index in range(len(widths))]
        spans = torch.tensor([*zip(starts, widths, strict=True)], dtype=torch.int32)
        return cls(paths, width, widths, spans.to(device))


@dataclass(frozen=True, slots=True)
class RowTable:
    """The places of a group's rows. One list a module: [modules, capacity], `counts` of it in use.

    a, b: addresses of rows in x's dtype, int64. owner: the column of each row in the weights.
    counts [modules]. Both int32.
    """

    a: Tensor
    b: Tensor
    owner: Tensor
    counts: Tensor


def mix_group(y: Tensor, x: Tensor, weights: Tensor, group: Group, table: RowTable) -> None:
    """y[:, module] += the mixture of each module, in place, as `reference.low_rank.mix_sum`.

    y [tokens, all outputs]; x [tokens, in]; weights [tokens, columns] fp32.
    """
    z = _shrink(x, table)
    tokens, (modules, capacity) = len(x), table.a.shape
    tile = token_tile(tokens)
    launch(
        expand_kernel,
        (-(-max(group.widths) // _BLOCK_O), -(-tokens // tile), modules),
        z,
        weights,
        table.b,
        y,
        table.owner,
        z,
        group.spans,
        table.counts,
        z,
        z,
        tokens,
        0,
        modules * capacity,
        capacity // BLOCK_R,
        weights.stride(0),
        0,
        y.stride(0),
        INDIRECT=True,
        SPARSE=False,
        FOLDED=False,
        ALIGN=span_align(*(outputs * y.itemsize for outputs in group.widths)),
        SPAN_ALIGN=span_align(*group.widths),
        WIDEN=widened(y.dtype),
        SPLITS=len(z),
        BLOCK_T=tile,
        BLOCK_R=BLOCK_R,
        BLOCK_O=_BLOCK_O,
    )


def _shrink(x: Tensor, table: RowTable) -> Tensor:
    """z [splits, tokens, modules * capacity] fp32; past a module's rows nothing is written."""
    (tokens, width), (modules, capacity) = x.shape, table.a.shape
    blocks = capacity // BLOCK_R
    shape = ShrinkShape.of(tokens, width, modules * blocks)
    z = torch.empty(shape.splits, tokens, modules * capacity, dtype=torch.float32, device=x.device)
    launch(
        shrink_kernel,
        (modules * blocks, -(-tokens // shape.tile), shape.splits),
        x,
        table.a,
        z,
        table.counts,
        z,
        z,
        tokens,
        width,
        modules * capacity,
        blocks,
        shape.chunk,
        x.stride(0),
        0,
        INDIRECT=True,
        SPARSE=False,
        ALIGN=span_align(width * x.itemsize),
        WIDEN=widened(x.dtype),
        BLOCK_T=shape.tile,
        BLOCK_R=BLOCK_R,
        BLOCK_K=shape.block_k,
    )
    return z
