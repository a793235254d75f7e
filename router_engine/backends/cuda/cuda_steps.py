"""A step on the Triton kernels: decodes by graph, everything else launch by launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from router_engine.backends.base import ForwardOutput
from router_engine.backends.cuda.cuda_decoder import CudaDecoder, DecoderInputs
from router_engine.backends.cuda.graphs import (
    BATCH_BUCKETS,
    MAX_COLUMNS,
    TILE_BUCKETS,
    Capture,
    DecodeArrays,
    GraphKey,
    Graphs,
    StaticInputs,
    bucket_for,
)
from router_engine.backends.cuda.slots import SLOTS
from router_engine.backends.cuda.table_mixtures import TableMixtures, weights_of
from router_engine.backends.step_arrays import StepArrays, chunks_of
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kernels.triton.grouped import Group
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
        new_capture: Callable[[], Capture],
        enforce_eager: bool = False,
    ) -> None:
        """enforce_eager: no graphs, for whoever looks for a fault."""
        self._decoder = decoder
        self._experts = experts
        self._cache = cache
        self._operations = operations
        self._device = device
        self._max_model_len = max_model_len
        cache.when_resized.append(self._forget_addresses)
        self._mixtures = TableMixtures(decoder, experts.pool, device)
        self._graphs = Graphs(new_capture)
        self._enforce_eager = enforce_eager
        self._inputs: dict[int, StaticInputs] = {}
        self._logits = torch.empty(
            BATCH_BUCKETS[-1], decoder.vocab, dtype=decoder.head.weight.dtype, device=device
        )
        self._head = decoder.head.weight

    @property
    def graphs(self) -> Graphs:
        """The decode steps captured so far."""
        return self._graphs

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`."""
        rows = plan.rows
        key = None
        if not self._enforce_eager and all(len(row.token_ids) == 1 for row in rows):
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

    @property
    def _max_blocks(self) -> int:
        """Of one request."""
        return min(-(-self._max_model_len // self._cache.block_size), self._cache.num_blocks)

    def _forget_addresses(self) -> None:
        """The cache is elsewhere, and of another size."""
        self._graphs.clear()
        self._inputs.clear()

    def _key(self, rows: Sequence[PlannedRow], weights: StepWeights | None) -> GraphKey | None:
        """The graph for a step of single tokens, or None where only eager code does."""
        batch = bucket_for(len(rows), BATCH_BUCKETS)
        if batch is None:
            return None
        reads_hidden_states = any(row.reads_hidden_states for row in rows)
        if weights is None:
            return GraphKey(batch, reads_hidden_states=reads_hidden_states)
        if not self._are_in_table(weights) or len(weights.digests) > MAX_COLUMNS:
            return None
        tiles = self._mixtures.tiles(weights.digests)
        capacity = bucket_for(len(tiles.places), TILE_BUCKETS)
        if capacity is None:
            return None
        return GraphKey(batch, capacity, self._mixtures.touched(tiles), reads_hidden_states)

    def _are_in_table(self, weights: StepWeights) -> bool:
        """Whether the kernels find a step's mixtures by the table: `sum` of plain LoRA."""
        return (
            weights.sqrt_weights is None
            and weights.merged_sqrt_weights is None
            and weights.layer_routed is None
            and len(weights.digests) <= SLOTS
            and self._experts.pool.are_plain_lora(weights.digests)
        )

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
            total = weights_of(weights, len(rows), self._device)
            if weights.below_probe is not None:
                lower = weights_of(weights.below_probe, len(rows), self._device)
        inputs.write(DecodeArrays.of(rows, self._cache.block_size), total, lower)
        if weights is not None:
            self._mixtures.write(weights.digests, key.tiles)
        logits = self._graphs.run(key, lambda: self._forward(inputs, key))[: len(rows)]
        hidden_states = inputs.hidden_states[: len(rows)].cpu() if key.reads_hidden_states else None
        return logits, hidden_states, inputs.finite[: len(rows)]

    def _forward(self, inputs: StaticInputs, key: GraphKey) -> Tensor:
        """Logits [batch, vocab] from what the buffers hold: this is what a graph captures."""
        pages = Pages(inputs.tables, inputs.starts, inputs.contexts, 1, self._cache.block_size)
        batch = DecoderInputs(inputs.numbers, PagedAttention(pages))
        lower = inputs.lower if key.reads_hidden_states else None
        mix = None
        if key.tiles:
            mix = self._mixtures.of_list(key.tiles, key.touched, inputs.weights, lower)
        hidden_states = inputs.hidden_states if key.reads_hidden_states else None
        hidden, finite = self._decoder.hidden(batch, mix, hidden_states)
        inputs.finite.copy_(finite)
        # One buffer for all graphs: each would keep an output of its own, as large as a batch's.
        logits = self._logits[: key.batch]
        return logits.copy_(self._decoder.logits(hidden, mix))

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
        hidden_states = None
        if plan.reads_hidden_states:
            hidden_states = torch.empty(
                len(arrays.token_ids), self._decoder.hidden_size, device=self._device
            )
        index = torch.from_numpy(arrays.samples).to(self._device, torch.long)
        if weights is None or self._are_in_table(weights):
            mix = head = None
            if weights is not None:
                mix = self._mixtures.of_step(weights, len(arrays.token_ids))
                head = mix.of_tokens(index)
            hidden, finite = self._decoder.hidden(batch, mix, hidden_states)
            logits, gates = self._decoder.logits(hidden[index], head), None
        else:
            self._experts.begin(weights)
            hidden, finite = self._decoder.hidden(
                batch, self._mix_gathered, hidden_states, self._experts
            )
            with self._experts.rows(index):
                logits = self._decoder.logits(hidden[index], self._mix_gathered)
            gates = self._experts.readings()
        hidden_states = None if hidden_states is None else hidden_states.cpu()
        return ForwardOutput(logits, hidden_states=hidden_states, gates=gates, finite=finite)

    def _mix_gathered(self, group: Group, x: Tensor, y: Tensor) -> None:
        """By operations on the gathered rows, whatever the mixture is."""
        first = 0
        for path, width in zip(group.paths, group.widths, strict=True):
            self._experts.apply(path, x, y[:, first : first + width])
            first += width
