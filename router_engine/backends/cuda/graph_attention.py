"""Attention inside graphs: buffers that are written before a replay, and what a graph captures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from router_engine.backends.cuda.staging import HostAndDevice, StepRoom
from router_engine.backends.step_arrays import StepArrays
from router_engine.kernels.base import StepAttention
from router_engine.kernels.triton.attention_work import Cutting, WorkRoom, cut
from router_engine.kernels.triton.triton_attention import (
    AttentionWork,
    attend,
    cutting_of,
    numbers,
    packed,
)
from router_engine.kv.block_table import BlockIds


class GraphAttention(Protocol):
    """The attention of all graphs of one engine. Used by the engine's thread."""

    def prepare(self, tokens: int, *, decodes: bool) -> None:
        """Have what a graph of so many tokens captures, before any step was written."""
        ...

    def write(self, arrays: StepArrays, tokens: int) -> None:
        """A step for a graph of so many tokens. The step before may still run."""
        ...

    def of(self, tokens: int, *, decodes: bool) -> StepAttention:
        """The attention of a graph, of what was written when it runs."""
        ...


class TritonGraphAttention:
    """As `GraphAttention`, by block tables and lists of work."""

    def __init__(
        self, room: StepRoom, cuttings: Collection[Cutting], block_size: int, device: torch.device
    ) -> None:
        """cuttings: of all layers, for decodes and for mixed steps."""
        self._room = room
        self._block_size = block_size
        self._tables = HostAndDevice((room.requests, room.blocks), device)
        self._block_ids: list[Sequence[int]] = [()] * room.requests  # that the tables hold
        self._on_hosts = [self._block_ids.copy(), self._block_ids.copy()]
        self._works: dict[Cutting, tuple[WorkRoom, HostAndDevice]] = {}
        for cutting in cuttings:
            most = cutting.room(room.tokens, room.requests)
            shape = (numbers(most.items, most.joins),)
            self._works[cutting] = most, HostAndDevice(shape, device)

    @property
    def tables(self) -> Tensor:
        """[requests, blocks] of the cache."""
        return self._tables.device

    def work(self, cutting: Cutting, tokens: int) -> AttentionWork:
        """The work of a graph of so many tokens."""
        most, buffers = self._works[cutting]
        whole = AttentionWork.over(buffers.device, most.items, most.rows, decodes=cutting.tile == 1)
        return whole.first(cutting.room(tokens, self._room.rows(tokens)))

    def prepare(self, tokens: int, *, decodes: bool) -> None:
        """Nothing: the kernels are the same whatever the work is."""

    def write(self, arrays: StepArrays, tokens: int) -> None:
        """See `GraphAttention.write`."""
        self._write_tables(arrays.block_ids)
        decodes = bool((arrays.lengths == 1).all())
        for cutting, (most, buffers) in self._works.items():
            if decodes == (cutting.tile == 1):
                room = cutting.room(tokens, self._room.rows(tokens))
                host = cut(arrays.lengths, arrays.contexts, cutting, room)
                buffers.turn()
                buffers.host.copy_(torch.from_numpy(packed(host, most.items, most.joins)))
                buffers.send()

    def of(self, tokens: int, *, decodes: bool) -> StepAttention:
        """See `GraphAttention.of`."""
        return _StaticAttention(self, tokens, self._block_size, decodes=decodes)

    def _write_tables(self, block_ids: Sequence[Sequence[int]]) -> None:
        """Only of those rows that hold other blocks than in the step before."""
        self._tables.turn()
        self._on_hosts.reverse()
        pairs = zip(block_ids, self._block_ids, strict=False)
        changed = [row for row, (ids, held) in enumerate(pairs) if ids is not held]
        if not changed:
            return
        rows = range(changed[0], changed[-1] + 1)  # those between are sent along
        host, on_host = self._tables.host.numpy(), self._on_hosts[0]
        for row in rows:
            ids = block_ids[row]
            if ids is not on_host[row]:
                host[row, : len(ids)] = ids.array if isinstance(ids, BlockIds) else ids
                on_host[row] = ids
            self._block_ids[row] = ids
        width = max(len(block_ids[row]) for row in changed)
        self._tables.send(slice(rows.start, rows.stop), slice(width))


class _StaticAttention:
    """As `kernels.base.StepAttention`, of what the buffers hold when it runs."""

    def __init__(
        self, inputs: TritonGraphAttention, tokens: int, block_size: int, *, decodes: bool
    ) -> None:
        self._inputs = inputs
        self._tokens = tokens
        self._block_size = block_size
        self._decodes = decodes

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        output = query.new_empty(query.shape)
        (_, heads, dim), kv_heads = query.shape, keys.shape[1]
        cutting = cutting_of(heads, kv_heads, dim, window, decodes=self._decodes)
        work, tables = self._inputs.work(cutting, self._tokens), self._inputs.tables
        attend(query, keys, values, output, tables, work, self._block_size, scale, window)
        return output
