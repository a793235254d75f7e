"""Paged attention on the device: where a step's requests lie, and the launch over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.kernels.base import Chunk
from router_engine.kernels.triton.device.paged import attend_kernel, combine_kernel
from router_engine.kernels.triton.launch import launch, power_of_two, programs_wanted, widened

_WIDE = 128  # heads that are wider take half the rows and positions, or registers spill
_BLOCK_N = 64  # context positions of one step of the softmax
_MAX_ROWS = 64  # of a prefill's tile
_STAGES = 5  # with fewer the compiler keeps one buffer, and every step waits for its own loads
_MAX_SPLITS = 16


@dataclass(frozen=True, slots=True)
class Pages:
    """The places of the tokens of a flat batch and of their contexts; int32 on the device.

    tables [requests, blocks]: cache blocks in order, past the context anything. starts
    [requests + 1]: first flat token of each request. contexts [requests]: positions that the last
    token of each request sees, itself included; 0 for a place without a request.
    """

    tables: Tensor
    starts: Tensor
    contexts: Tensor
    longest: int  # tokens of the longest chunk, or more
    block_size: int

    @classmethod
    def of(cls, chunks: Sequence[Chunk], block_size: int, device: torch.device) -> Pages:
        """The pages of `chunks`, which follow one another in the flat batch."""
        width = max(len(chunk.block_ids) for chunk in chunks)
        tables = [(*chunk.block_ids, *(0,) * (width - len(chunk.block_ids))) for chunk in chunks]
        starts = [*(chunk.first for chunk in chunks), chunks[-1].first + chunks[-1].length]
        return cls(
            tables=_int32(tables, device),
            starts=_int32(starts, device),
            contexts=_int32([chunk.stop for chunk in chunks], device),
            longest=max(chunk.length for chunk in chunks),
            block_size=block_size,
        )


class PagedAttention:
    """As `kernels.base.StepAttention`."""

    def __init__(self, pages: Pages, *, splits: int | None = None) -> None:
        """`splits`: programs a context is divided among; None: as many as fill the card."""
        self._pages = pages
        self._splits = splits

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        output = query.new_empty(query.shape)
        attend(query, keys, values, output, self._pages, scale, window, splits=self._splits)
        return output


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    pages: Pages,
    scale: float,
    window: int | None,
    *,
    splits: int | None = None,
) -> None:
    """Attention of query [tokens, heads, dim] over the cache, into `output`, contiguous.

    A head's values must lie side by side in query, keys and values; keys and values alike.
    """
    tokens, heads, dim = query.shape
    kv_heads = keys.shape[1]
    requests, group = pages.contexts.shape[0], heads // kv_heads
    rows, tile = _tile(group, pages.longest, dim)
    tiles = -(-pages.longest // tile)
    splits = splits or (_splits(requests * tiles * kv_heads) if pages.longest == 1 else 1)
    parts, maxima, sums = _parts(output, splits)
    launch(
        attend_kernel,
        (requests, tiles, kv_heads * splits),
        query,
        keys,
        values,
        output,
        parts,
        maxima,
        sums,
        pages.tables,
        pages.starts,
        pages.contexts,
        tokens,
        heads,
        scale * math.log2(math.e),
        0 if window is None else window,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        output.stride(0),
        pages.tables.stride(0),
        GROUP=group,
        HEAD=dim,
        BLOCK_D=max(16, power_of_two(dim)),
        PAGE=pages.block_size,
        WINDOWED=window is not None,
        SPLITS=splits,
        TOKENS=tile,
        BLOCK_M=rows,
        BLOCK_N=_BLOCK_N if dim <= _WIDE else _BLOCK_N // 2,
        WIDEN=widened(query.dtype),
        **compiled_for(rows),
    )
    if splits > 1:
        _combine(parts, maxima, sums, output)


def compiled_for(rows: int) -> dict[str, int]:
    """Options of the compiler for a tile of so many rows."""
    return {"num_stages": _STAGES, "num_warps": 8 if rows >= _MAX_ROWS else 4}


def _parts(output: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `_combine` joins; of one split nothing is kept, `output` stands in its place."""
    if splits == 1:
        return output, output, output
    parts = output.new_empty(splits, *output.shape, dtype=torch.float32)
    maxima, sums = parts.new_empty(2, *parts.shape[:3])
    return parts, maxima, sums


def _combine(parts: Tensor, maxima: Tensor, sums: Tensor, output: Tensor) -> None:
    """Join what the splits of each context found: parts [splits, tokens, heads, dim]."""
    splits, tokens, heads, dim = parts.shape
    launch(
        combine_kernel,
        (tokens, heads),
        parts,
        maxima,
        sums,
        output,
        tokens,
        heads,
        output.stride(0),
        HEAD=dim,
        BLOCK_D=power_of_two(dim),
        SPLITS=splits,
    )


def _tile(group: int, longest: int, dim: int) -> tuple[int, int]:
    """Rows of a tile and tokens in it: a token takes a row for each query head of its group."""
    least = max(16, power_of_two(group))
    if longest == 1:
        return least, 1
    rows = max(least, _MAX_ROWS if dim <= _WIDE else _MAX_ROWS // 2)
    return rows, rows // group


def _splits(programs: int) -> int:
    """A power of two, so that few variants are compiled."""
    return min(_MAX_SPLITS, power_of_two(programs_wanted() // max(programs, 1)))


def _int32(values: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)
