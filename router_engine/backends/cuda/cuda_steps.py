"""A step on the Triton kernels: decodes by graph, everything else launch by launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from router_engine.backends.base import ForwardOutput
from router_engine.backends.cuda.cuda_decoder import CudaDecoder, DecoderInputs
from router_engine.backends.cuda.graphs import (
    BATCH_BUCKETS,
    MAX_COLUMNS,
    ROW_BUCKETS,
    Capture,
    DecodeArrays,
    GraphKey,
    Graphs,
    StaticInputs,
    bucket_for,
)
from router_engine.backends.cuda.tables import HostRows, RowLocator, StaticTables
from router_engine.backends.step_arrays import StepArrays, chunks_of
from router_engine.experts.rows import RowPool
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kernels.triton.grouped import Group, RowTable, mix_group
from router_engine.kernels.triton.triton_attention import PagedAttention, Pages
from router_engine.kv.paged_cache import PagedCache
from router_engine.mixture.weights import StepWeights
from router_engine.scheduling.plan import PlannedRow, StepPlan


class CudaSteps:
    """Runs whole steps of one model. Used by the engine's thread."""

    def __init__(
        self,
        decoder: CudaDecoder,
        experts: StepExperts,
        cache: PagedCache,
        operations: Operations,
        *,
        max_model_len: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._decoder = decoder
        self._experts = experts
        self._cache = cache
        self._operations = operations
        self._device = device
        self._max_blocks = min(-(-max_model_len // cache.block_size), cache.num_blocks)
        self._mixtures = TableMixtures(decoder, experts.pool, device)
        self._graphs = Graphs(capture)
        self._inputs: dict[int, StaticInputs] = {}
        self._head = decoder.head.weight

    @property
    def graphs(self) -> Graphs:
        """The decode steps captured so far."""
        return self._graphs

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`."""
        rows = plan.rows
        key = None
        if all(len(row.token_ids) == 1 for row in rows):
            key = self._key(rows, weights)
        if key is None:
            return self._eager(plan, weights)
        logits, hidden_states, finite = self._decode(rows, weights, key)
        if not all(row.needs_logits for row in rows):
            picked = [index for index, row in enumerate(rows) if row.needs_logits]
            logits = logits[torch.tensor(picked, dtype=torch.long, device=self._device)]
        return ForwardOutput(logits, hidden_states=hidden_states, finite=finite)

    def refresh(self) -> None:
        """Base weights have changed. Called between steps.

        Parameters are written in place, where graphs read them; only a head that shares the
        embedding's parameter gets another one while it is merged.
        """
        if self._decoder.head.weight is not self._head:
            self._head = self._decoder.head.weight
            self._graphs.clear()

    def _key(self, rows: Sequence[PlannedRow], weights: StepWeights | None) -> GraphKey | None:
        """The graph for a step of single tokens, or None where only eager code does."""
        batch = bucket_for(len(rows), BATCH_BUCKETS)
        if batch is None:
            return None
        reads_hidden_states = any(row.reads_hidden_states for row in rows)
        if weights is None:
            return GraphKey(batch, reads_hidden_states=reads_hidden_states)
        if weights.sqrt_weights is not None or weights.merged_sqrt_weights is not None:
            return None
        if weights.layer_routed is not None or not self._experts.pool.are_plain_lora(
            weights.digests
        ):
            return None
        if len(weights.digests) > MAX_COLUMNS:
            return None
        rows_there = self._mixtures.rows(weights.digests)
        capacity = bucket_for(rows_there.most, ROW_BUCKETS)
        if capacity is None:
            return None
        return GraphKey(batch, capacity, self._mixtures.touched(rows_there), reads_hidden_states)

    def _decode(
        self, rows: Sequence[PlannedRow], weights: StepWeights | None, key: GraphKey
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits [rows, vocab]; the hidden states [rows, hidden] on the host, where it is read;
        `finite`."""
        if key.batch not in self._inputs:
            self._inputs[key.batch] = StaticInputs(
                key.batch, self._max_blocks, self._decoder.hidden_size, self._device
            )
        inputs = self._inputs[key.batch]
        total = lower = None
        if weights is not None:
            total = _matrix(weights, len(rows), self._device)
            if weights.below_probe is not None:
                lower = _matrix(weights.below_probe, len(rows), self._device)
        inputs.write(DecodeArrays.of(rows, self._cache.block_size), total, lower)
        if weights is not None:
            self._mixtures.write(key.rows, weights.digests)
        logits = self._graphs.run(key, lambda: self._forward(inputs, key))[: len(rows)]
        hidden_states = inputs.hidden_states[: len(rows)].cpu() if key.reads_hidden_states else None
        return logits, hidden_states, inputs.finite[: len(rows)]

    def _forward(self, inputs: StaticInputs, key: GraphKey) -> Tensor:
        """Logits [batch, vocab] from what the buffers hold: this is what a graph captures."""
        pages = Pages(inputs.tables, inputs.starts, inputs.contexts, 1, self._cache.block_size)
        batch = DecoderInputs(inputs.numbers, PagedAttention(pages))
        lower = inputs.lower if key.reads_hidden_states else None
        mix = self._mixtures.mix(key, inputs.weights, lower) if key.rows else None
        hidden_states = inputs.hidden_states if key.reads_hidden_states else None
        hidden, finite = self._decoder.hidden(batch, mix, hidden_states)
        inputs.finite.copy_(finite)
        return self._decoder.logits(hidden, mix)

    def _eager(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """The same without a graph, for any plan and any weights."""
        arrays, block_size = StepArrays(plan), self._cache.block_size
        slots = arrays.slots(block_size)
        numbers = np.stack((arrays.token_ids, arrays.positions, slots)).astype(np.int32)
        chunks = chunks_of(plan.rows)
        batch = DecoderInputs(
            numbers=torch.from_numpy(numbers).to(self._device),
            attention=self._operations.attention(chunks, block_size, self._device),
        )
        self._experts.begin(weights)
        mix = None if weights is None else self._mix_eagerly
        hidden_states = None
        if plan.reads_hidden_states:
            hidden_states = torch.empty(
                len(arrays.token_ids), self._decoder.hidden_size, device=self._device
            )
        hidden, finite = self._decoder.hidden(batch, mix, hidden_states, self._experts)
        index = torch.from_numpy(arrays.samples).to(self._device, torch.long)
        with self._experts.rows(index):
            logits = self._decoder.logits(hidden[index], mix)
        gates = self._experts.readings()
        hidden_states = None if hidden_states is None else hidden_states.cpu()
        return ForwardOutput(logits, hidden_states=hidden_states, gates=gates, finite=finite)

    def _mix_eagerly(self, group: Group, x: Tensor, y: Tensor) -> None:
        first = 0
        for path, width in zip(group.paths, group.widths, strict=True):
            self._experts.apply(path, x, y[:, first : first + width])
            first += width


class TableMixtures:
    """Mixtures under `sum` whose rows the kernels find in static tables."""

    def __init__(self, decoder: CudaDecoder, pool: RowPool, device: torch.device) -> None:
        groups, item_size = decoder.groups, decoder.item_size
        self._below = decoder.groups_below_probe()
        self._groups = {group.paths: index for index, group in enumerate(groups)}
        self._firsts = np.cumsum([0, *(len(group.paths) for group in groups)])
        self._device = device
        modules = [path for group in groups for path in group.paths]
        strides = [
            (group.width * item_size, width * item_size)
            for group in groups
            for width in group.widths
        ]
        self._locator = RowLocator(pool, modules, strides)
        self._tables: dict[int, StaticTables] = {}

    def rows(self, digests: tuple[str, ...]) -> HostRows:
        return self._locator.rows(digests)

    def touched(self, rows: HostRows) -> frozenset[int]:
        """Groups that any rows act on: the others need no launch."""
        counts = np.add.reduceat(rows.counts, self._firsts[:-1])
        return frozenset(np.flatnonzero(counts).tolist())

    def write(self, capacity: int, digests: tuple[str, ...]) -> None:
        """Let the tables of a capacity hold these adapters' rows."""
        if capacity not in self._tables:
            self._tables[capacity] = StaticTables(int(self._firsts[-1]), capacity, self._device)
        self._tables[capacity].write(self.rows(digests))

    def mix(self, key: GraphKey, weights: Tensor, lower: Tensor | None) -> _TableMix:
        """`lower`: weights of the layers below the probe layer, where they have their own."""
        below = dict.fromkeys(self._below, lower) if lower is not None else {}
        return _TableMix(self._group_tables(key.rows), weights, below, key.touched, self._groups)

    def _group_tables(self, capacity: int) -> list[RowTable]:
        tables = self._tables[capacity]
        return [
            tables.group(int(first), int(last - first))
            for first, last in zip(self._firsts[:-1], self._firsts[1:], strict=True)
        ]


class _TableMix:
    """One step's mixture as the decoder calls it."""

    def __init__(
        self,
        tables: Sequence[RowTable],
        weights: Tensor,
        below: Mapping[tuple[str, ...], Tensor],
        touched: frozenset[int],
        groups: dict[tuple[str, ...], int],
    ) -> None:
        self._tables = tables
        self._weights = weights
        self._below = below
        self._touched = touched
        self._groups = groups

    def __call__(self, group: Group, x: Tensor, y: Tensor) -> None:
        index = self._groups[group.paths]
        if index in self._touched:
            weights = self._below.get(group.paths, self._weights)
            mix_group(y, x, weights[: len(x)], group, self._tables[index])


def _matrix(weights: StepWeights, rows: int, device: torch.device) -> Tensor:
    """Weights [rows, adapters]."""
    if weights.sum_weights is not None:
        return weights.sum_weights
    return torch.zeros(rows, len(weights.digests), device=device)
