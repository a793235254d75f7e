"""Paged attention on the device: a step's list of work, and the launches over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_engine.kernels.base import Chunk
from router_engine.kernels.triton.attention_work import (
    BLOCK_N,
    ITEM_NUMBERS,
    JOIN_NUMBERS,
    Cutting,
    HostWork,
    WorkRoom,
    cut,
)
from router_engine.kernels.triton.device.paged import attend_kernel, combine_kernel
from router_engine.kernels.triton.launch import launch, power_of_two, programs_wanted, widened
from router_engine.transfers import sent

_WIDE = 128  # heads that are wider take half the rows and positions, or registers spill
_MAX_ROWS = 64  # of a prompt's tile
_STAGES = 5  # with fewer the compiler keeps one buffer, and every step waits for its own loads
_COUNTS = 4  # numbers before the items, two of them in use: what follows is aligned


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """Room for a `HostWork` on the device, at one address; int32.

    items [most, 7], joins [most, 4]: as there; counts [2]: how many of each are in use. rows: of
    the parts, or more. decodes: tiles are of one token.
    """

    items: Tensor
    joins: Tensor
    counts: Tensor
    rows: int
    decodes: bool

    @classmethod
    def over(cls, buffer: Tensor, items: int, rows: int, *, decodes: bool) -> AttentionWork:
        """That in a buffer [`numbers`], with room for so many items."""
        first, split = _COUNTS, _COUNTS + ITEM_NUMBERS * items
        return cls(
            items=buffer[first:split].view(-1, ITEM_NUMBERS),
            joins=buffer[split:].view(-1, JOIN_NUMBERS),
            counts=buffer[:2],
            rows=rows,
            decodes=decodes,
        )

    def first(self, room: WorkRoom) -> AttentionWork:
        """The same for steps that need no more than this."""
        return replace(
            self, items=self.items[: room.items], joins=self.joins[: room.joins], rows=room.rows
        )


def numbers(items: int, joins: int) -> int:
    """Numbers that a buffer for so many has."""
    return _COUNTS + ITEM_NUMBERS * items + JOIN_NUMBERS * joins


def packed(work: HostWork, items: int, joins: int) -> NDArray[np.int32]:
    """A buffer's numbers, with room for so many; what is not in use is not set."""
    made = np.empty(numbers(items, joins), dtype=np.int32)
    made[:2] = len(work.items), len(work.joins)
    split = _COUNTS + ITEM_NUMBERS * items
    made[_COUNTS : _COUNTS + work.items.size] = work.items.ravel()
    made[split : split + work.joins.size] = work.joins.ravel()
    return made


class PagedAttention:
    """As `kernels.base.StepAttention`, of the requests of one flat batch."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        block_size: int,
        device: torch.device,
        *,
        programs: int | None = None,
    ) -> None:
        """programs: items that every context is to be shared among; None: as many as pay."""
        width = max(len(chunk.block_ids) for chunk in chunks)
        tables = [(*chunk.block_ids, *(0,) * (width - len(chunk.block_ids))) for chunk in chunks]
        self._tables = sent(torch.tensor(tables, dtype=torch.int32), device)
        self._lengths = np.array([chunk.length for chunk in chunks])
        self._contexts = np.array([chunk.stop for chunk in chunks])
        self._block_size = block_size
        self._device = device
        self._programs = programs
        self._works: dict[Cutting, AttentionWork] = {}  # layers differ by their windows, if at all

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        output = query.new_empty(query.shape)
        decodes = int(self._lengths.max()) == 1
        cutting = cutting_of(query.shape[1], keys.shape[1], query.shape[2], window, decodes=decodes)
        if cutting not in self._works:
            self._works[cutting] = self._work(cutting)
        work = self._works[cutting]
        attend(query, keys, values, output, self._tables, work, self._block_size, scale, window)
        return output

    def _work(self, cutting: Cutting) -> AttentionWork:
        if self._programs is not None:
            cutting = replace(cutting, programs=self._programs, least=1)
        host = cut(self._lengths, self._contexts, cutting)
        items, joins = len(host.items), len(host.joins)
        buffer = sent(torch.from_numpy(packed(host, items, joins)), self._device)
        return AttentionWork.over(buffer, items, host.rows, decodes=cutting.tile == 1)


def cutting_of(
    heads: int, kv_heads: int, dim: int, window: int | None, *, decodes: bool
) -> Cutting:
    """The cut of a model's attention. decodes: no request has more than one token."""
    group = heads // kv_heads
    tile = 1 if decodes else _rows(group, dim, decodes=False) // group
    return Cutting(heads, tile, -(-programs_wanted() // kv_heads), window)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    tables: Tensor,
    work: AttentionWork,
    block_size: int,
    scale: float,
    window: int | None,
) -> None:
    """Attention of query [tokens, heads, dim] over the cache, into `output`, contiguous.

    A head's values must lie side by side in query, keys and values; keys and values alike. tables
    [requests, blocks] int32: cache blocks in order, past the context anything. Tokens that no item
    of `work` has are not written.
    """
    (_, heads, dim), kv_heads = query.shape, keys.shape[1]
    group = heads // kv_heads
    rows = _rows(group, dim, decodes=work.decodes)
    parts, maxima, sums = _parts(output, work.rows)
    launch(
        attend_kernel,
        (len(work.items), kv_heads),
        query,
        keys,
        values,
        output,
        parts,
        maxima,
        sums,
        tables,
        work.items,
        work.counts,
        heads,
        scale * math.log2(math.e),
        0 if window is None else window,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        output.stride(0),
        tables.stride(0),
        GROUP=group,
        HEAD=dim,
        BLOCK_D=max(16, power_of_two(dim)),
        PAGE=block_size,
        WINDOWED=window is not None,
        BLOCK_M=rows,
        BLOCK_N=BLOCK_N if dim <= _WIDE else BLOCK_N // 2,
        WIDEN=widened(query.dtype),
        **compiled_for(rows),
    )
    _combine(parts, maxima, sums, output, work)


def _combine(
    parts: Tensor, maxima: Tensor, sums: Tensor, output: Tensor, work: AttentionWork
) -> None:
    dim = output.shape[2]
    launch(
        combine_kernel,
        (len(work.joins), output.shape[1]),
        parts,
        maxima,
        sums,
        output,
        work.joins,
        work.counts[1:],
        output.stride(0),
        HEAD=dim,
        BLOCK_D=power_of_two(dim),
    )


def compiled_for(rows: int) -> dict[str, int]:
    """Options of the compiler for a tile of so many rows."""
    return {"num_stages": _STAGES, "num_warps": 8 if rows >= _MAX_ROWS else 4}


def _parts(output: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `combine_kernel` joins, fp32: [rows, dim], [rows], [rows]; with room for one at least,
    so that kernels are the same."""
    rows = max(rows, 1)
    parts = output.new_empty(rows, output.shape[2], dtype=torch.float32)
    maxima, sums = parts.new_empty(2, -(-rows // 4) * 4)
    return parts, maxima, sums


def _rows(group: int, dim: int, *, decodes: bool) -> int:
    """Rows of a tile: a token takes one for each query head of its group."""
    least = max(16, power_of_two(group))
    if decodes:
        return least
    return max(least, _MAX_ROWS if dim <= _WIDE else _MAX_ROWS // 2)
