"""The inputs of all graphs, at fixed addresses: a graph reads the first of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from router_engine.backends.cuda.room import MAX_COLUMNS
from router_engine.backends.cuda.table_mixtures import TokenWeights
from router_engine.backends.step_arrays import StepArrays
from router_engine.kernels.triton.attention_work import Cutting, WorkRoom, cut
from router_engine.kernels.triton.triton_attention import (
    AttentionWork,
    attend,
    cutting_of,
    numbers,
    packed,
)
from router_engine.kv.block_table import BlockIds
from router_engine.mixture.weights import StepWeights

_IDS, _POSITIONS, _SLOTS, _SAMPLES = range(4)


class StepRoom(NamedTuple):
    """The most of a step that a graph runs. blocks: of one request."""

    tokens: int
    requests: int
    blocks: int


class _HostAndDevice:
    """Numbers that are written on the host, and go to the device by one copy.

    There are two of them on the host, by turns: one step may still be under way when the next is
    written, and the one before that has ended.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        pin = device.type == "cuda"  # where there is no card there is no pinned memory
        self._hosts = [torch.zeros(shape, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
        self.device = torch.zeros(shape, dtype=torch.int32, device=device)

    @property
    def host(self) -> Tensor:
        """To be written now."""
        return self._hosts[0]

    def turn(self) -> None:
        """A step begins."""
        self._hosts.reverse()

    def send(self, *at: slice) -> None:
        """Copy a part, once all is done that the device was asked for before."""
        self.device[at].copy_(self.host[at], non_blocking=True)


class StaticInputs:
    """Written by the engine's thread before a replay, while the step before may still run.

    Copies and replays are in the order of one stream, so that step reads what was its own.
    """

    def __init__(
        self, room: StepRoom, hidden: int, cuttings: Collection[Cutting], device: torch.device
    ) -> None:
        """cuttings: of attention, of all layers, for decodes and for mixed steps."""
        self.room = room
        self._numbers = _HostAndDevice((4, room.tokens), device)
        self._numbers.device[_SLOTS] = -1  # what runs before a step is written stores nothing
        self._tables = _HostAndDevice((room.requests, room.blocks), device)
        self._block_ids: list[Sequence[int]] = [()] * room.requests  # that the tables hold
        self._on_hosts = [self._block_ids.copy(), self._block_ids.copy()]
        self._works: dict[Cutting, tuple[WorkRoom, _HostAndDevice]] = {}
        for cutting in cuttings:
            most = cutting.room(room.tokens, room.requests)
            shape = (numbers(most.items, most.joins),)
            self._works[cutting] = most, _HostAndDevice(shape, device)
        weights = torch.zeros(4, room.tokens, MAX_COLUMNS, device=device)
        self._weights = TokenWeights(*weights)
        self.hidden_states = torch.zeros(room.tokens, hidden, device=device)  # written
        self.finite = torch.zeros(room.tokens, dtype=torch.bool, device=device)  # written

    def numbers(self, tokens: int) -> Tensor:
        """[3, tokens]: token ids, positions, slots."""
        return self._numbers.device[:_SAMPLES, :tokens]

    def samples(self, count: int) -> Tensor:
        """[count]: the tokens whose logits are wanted; past those of a step, the first."""
        return self._numbers.device[_SAMPLES, :count]

    @property
    def tables(self) -> Tensor:
        """[requests, blocks] of the cache."""
        return self._tables.device

    def work(self, cutting: Cutting, tokens: int) -> AttentionWork:
        """The work of attention of a graph of so many tokens."""
        most, buffers = self._works[cutting]
        whole = AttentionWork.over(buffers.device, most.items, most.rows, decodes=cutting.tile == 1)
        return whole.first(cutting.room(tokens, min(tokens, self.room.requests)))

    def write(
        self,
        arrays: StepArrays,
        block_size: int,
        tokens: int,
        weights: StepWeights | None,
        token_ids: Tensor | None = None,
    ) -> None:
        """A step for a graph of so many tokens; those that are added store and see nothing.

        weights: None where the graph reads none; what is none of the step's adapters is not read.
        token_ids: those of `arrays`, where only the device has them.
        """
        self._write_numbers(arrays, block_size, tokens)
        if token_ids is not None:
            self._numbers.device[_IDS, : len(token_ids)].copy_(token_ids)
        self._write_tables(arrays.block_ids)
        decodes = bool((arrays.lengths == 1).all())
        for cutting, (most, buffers) in self._works.items():
            if decodes == (cutting.tile == 1):
                room = cutting.room(tokens, min(tokens, self.room.requests))
                host = cut(arrays.lengths, arrays.contexts, cutting, room)
                buffers.turn()
                buffers.host.copy_(torch.from_numpy(packed(host, most.items, most.joins)))
                buffers.send()
        if weights is not None:
            self._write_weights(weights, len(arrays.token_ids))

    def weights(self, tokens: int, *, linear: bool) -> TokenWeights:
        """Of a graph of so many tokens. linear: it has some under `linear` among them."""
        sums, lower, roots, lower_roots = (part[:tokens] for part in self._weights.parts)
        if not linear:
            return TokenWeights(sums, lower)
        return TokenWeights(sums, lower, roots, lower_roots)

    def _write_weights(self, weights: StepWeights, count: int) -> None:
        below = weights.below_probe or weights
        parts = [weights.sum_weights, below.sum_weights]
        if weights.sqrt_weights is not None:
            parts += [weights.sqrt_weights, below.sqrt_weights]
        for buffer, part in zip(self._weights.parts, parts, strict=False):
            own = buffer[:count, : len(weights.digests)]
            _ = own.zero_() if part is None else own.copy_(part)

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
        self._tables.send(
            slice(rows.start, rows.stop), slice(max(len(block_ids[row]) for row in changed))
        )

    def _write_numbers(self, arrays: StepArrays, block_size: int, tokens: int) -> None:
        self._numbers.turn()
        host = self._numbers.host[:, :tokens].numpy()
        count, samples = len(arrays.token_ids), len(arrays.samples)
        host[_IDS, :count] = arrays.token_ids
        host[_POSITIONS, :count] = arrays.positions
        host[_SLOTS, :count] = arrays.slots(block_size)
        host[:_SLOTS, count:] = 0
        host[_SLOTS, count:] = -1
        host[_SAMPLES, :samples] = arrays.samples
        host[_SAMPLES, samples:] = 0
        self._numbers.send(slice(None), slice(tokens))


class StaticAttention:
    """As `kernels.base.StepAttention`, of what the inputs hold when it runs."""

    def __init__(
        self, inputs: StaticInputs, tokens: int, block_size: int, *, decodes: bool
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
