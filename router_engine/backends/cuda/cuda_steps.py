"""A step on the Triton kernels: by graph where one holds it, else launch by launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from router_engine.backends.base import ForwardOutput
from router_engine.backends.cuda.cuda_decoder import CudaDecoder, DecoderInputs
from router_engine.backends.cuda.graph_attention import GraphAttention, TritonGraphAttention
from router_engine.backends.cuda.graphs import (
    LINEAR_TILES,
    TILE_BUCKETS,
    Capture,
    GraphKey,
    Graphs,
    GraphSizes,
    bucket_for,
)
from router_engine.backends.cuda.room import MAX_COLUMNS, SLOTS
from router_engine.backends.cuda.staging import StepRoom
from router_engine.backends.cuda.static_inputs import StaticInputs
from router_engine.backends.cuda.table_mixtures import TableMixtures
from router_engine.backends.step_arrays import StepArrays, chunks_of
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kernels.triton.grouped import LINEAR_ROWS, Group
from router_engine.kv.paged_cache import PagedCache
from router_engine.mixture.weights import StepWeights
from router_engine.scheduling.plan import StepLimits, StepPlan
from router_engine.transfers import sent


class DrawnTokens:
    """As `backends.base.TokenFeed`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._drawn: Tensor | None = None

    def give(self, drawn: Tensor) -> None:
        """See `TokenFeed.give`."""
        self._drawn = drawn

    def of(self, plan: StepPlan) -> Tensor | None:
        """The tokens of a plan that is fed, in its rows' order; None for another."""
        if plan.fed is None:
            return None
        if self._drawn is None:
            raise ValueError("a plan is fed, and no step has drawn a token")
        if plan.fed == tuple(range(len(self._drawn))):
            return self._drawn
        return self._drawn.index_select(0, sent(torch.tensor(plan.fed), self._device))


class CudaSteps:
    """Runs whole steps of one model. Used by the engine's thread."""

    def __init__(
        self,
        decoder: CudaDecoder,
        experts: StepExperts,
        cache: PagedCache,
        operations: Operations,
        *,
        limits: StepLimits,
        new_capture: Callable[[], Capture],
        new_attention: Callable[[StepRoom], GraphAttention] | None = None,
        enforce_eager: bool = False,
    ) -> None:
        """limits: of all steps. enforce_eager: no graphs, for whoever looks for a fault.

        new_attention: that of graphs; None: by the Triton kernels.
        """
        self._decoder = decoder
        self._experts = experts
        self._cache = cache
        self._operations = operations
        self._device = decoder.device
        self._limits = limits
        cache.when_resized.append(self._forget_addresses)
        self._mixtures = TableMixtures(decoder, experts.pool, decoder.device)
        self.sizes = GraphSizes.of(limits)
        self._graphs = Graphs(new_capture)
        self._enforce_eager = enforce_eager
        self._held_inputs: StaticInputs | None = None
        self._held_attention: GraphAttention | None = None
        self._new_attention = new_attention or self._triton_attention
        self._logits = torch.empty(
            self.sizes.requests,
            decoder.vocab,
            dtype=decoder.head.weight.dtype,
            device=decoder.device,
        )
        self._head = decoder.head.weight
        self.feed = DrawnTokens(decoder.device)

    @property
    def graphs(self) -> Graphs:
        """The steps captured so far."""
        return self._graphs

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`."""
        key = None if self._enforce_eager else self._key(plan, weights)
        return self._eager(plan, weights) if key is None else self._replay(plan, weights, key)

    @torch.inference_mode()
    def launch_kinds(self) -> None:
        """Launch every kind of kernel that steps within the limits may launch.

        It is for `kernels.triton.compilation`: no kernel runs, and nothing comes of the rest.
        """
        for decodes, sizes in ((True, self.sizes.decodes), (False, self.sizes.mixed)):
            self._attention.prepare(sizes[0], decodes=decodes)
            self._forward(GraphKey(sizes[0], decodes=decodes))
        self._mixtures.launch_kinds(max(self._limits.tokens, self.sizes.tokens))

    def prepare(self) -> None:
        """Make the inputs of all graphs."""
        _ = self._inputs, self._attention

    @torch.inference_mode()
    def capture(self, key: GraphKey) -> None:
        """Have the graph of a key before a step asks for it."""
        self._attention.prepare(key.tokens, decodes=key.decodes)
        self._graphs.capture(key, partial(self._forward, key))

    def keys(self) -> tuple[GraphKey, ...]:
        """Every key that a step asks for, what takes most first."""
        reaches = self._mixtures.reaches
        mixtures = [(tiles, reach) for tiles in TILE_BUCKETS[::-1] for reach in reaches[::-1]]
        kinds = (*mixtures, (0, frozenset[int]()))
        linear = (LINEAR_TILES, reaches[-1])
        sizes = [(tokens, False) for tokens in self.sizes.mixed[::-1]]
        sizes += [(tokens, True) for tokens in self.sizes.decodes[::-1]]
        return tuple(
            key
            for tokens, decodes in sizes
            for key in (
                GraphKey(tokens, *linear, decodes, linear=True),
                *(GraphKey(tokens, *kind, decodes) for kind in kinds),
            )
        )

    def refresh(self) -> bool:
        """Base weights have changed; whether graphs were forgotten. Called between steps.

        Parameters are written in place, where graphs read them; only a head that shares the
        embedding's parameter gets another one while it is merged.
        """
        if self._decoder.head.weight is self._head:
            return False
        self._head = self._decoder.head.weight
        self._graphs.clear()
        return True

    @property
    def _room(self) -> StepRoom:
        blocks = -(-self._limits.max_model_len // self._cache.block_size)
        return StepRoom(self.sizes.tokens, self.sizes.requests, min(blocks, self._cache.num_blocks))

    @property
    def _inputs(self) -> StaticInputs:
        """Those of all graphs, but attention's."""
        if self._held_inputs is None:
            self._held_inputs = StaticInputs(self._room, self._decoder.hidden_size, self._device)
        return self._held_inputs

    @property
    def _attention(self) -> GraphAttention:
        """That of all graphs."""
        if self._held_attention is None:
            self._held_attention = self._new_attention(self._room)
        return self._held_attention

    def _triton_attention(self, room: StepRoom) -> GraphAttention:
        cuttings, size = self._decoder.cuttings(), self._cache.block_size
        return TritonGraphAttention(room, cuttings, size, self._device)

    def _forget_addresses(self) -> None:
        """The cache is elsewhere, and of another size."""
        self._graphs.clear()
        self._held_inputs = self._held_attention = None

    def _key(self, plan: StepPlan, weights: StepWeights | None) -> GraphKey | None:
        """The graph for a step, or None where only eager code does."""
        decodes = all(len(row.token_ids) == 1 for row in plan.rows)
        sizes = self.sizes.decodes if decodes else self.sizes.mixed
        tokens = bucket_for(plan.num_tokens, sizes)
        if tokens is None or len(plan.rows) > min(tokens, self.sizes.requests):
            return None
        if weights is None:
            return GraphKey(tokens, decodes=decodes)
        if not self._are_in_table(weights) or len(weights.digests) > MAX_COLUMNS:
            return None
        tiles = self._mixtures.tiles(weights.digests)
        if weights.sqrt_weights is not None:
            key = GraphKey(tokens, LINEAR_TILES, self._mixtures.reaches[-1], decodes, linear=True)
            return key if len(tiles.places) <= LINEAR_TILES else None
        capacity = bucket_for(len(tiles.places), TILE_BUCKETS)
        if capacity is None:
            return None
        return GraphKey(tokens, capacity, self._mixtures.reach(tiles), decodes)

    def _are_in_table(self, weights: StepWeights) -> bool:
        """Whether the kernels find a step's mixtures by the table: those of plain LoRA.

        Under `linear`, of ranks that a fold holds; a merged one that is taken off is not.
        """
        return (
            weights.merged_sqrt_weights is None
            and weights.layer_routed is None
            and len(weights.digests) <= SLOTS
            and self._experts.pool.are_plain_lora(weights.digests)
            and (
                weights.sqrt_weights is None
                or self._mixtures.tiles(weights.digests).rows <= LINEAR_ROWS
            )
        )

    def _replay(self, plan: StepPlan, weights: StepWeights | None, key: GraphKey) -> ForwardOutput:
        inputs, arrays = self._inputs, StepArrays(plan)
        count = len(arrays.token_ids)
        if weights is not None:
            self._mixtures.write(weights.digests, key.tiles)
        token_ids = self.feed.of(plan)
        inputs.write(arrays, self._cache.block_size, key.tokens, weights, token_ids)
        self._attention.write(arrays, key.tokens)
        logits = self._graphs.run(key, partial(self._forward, key))[: len(arrays.samples)]
        hidden_states = None
        if plan.reads_hidden_states:
            hidden_states = inputs.hidden_states[:count]
        return ForwardOutput(logits, hidden_states=hidden_states, finite=inputs.finite[:count])

    def _forward(self, key: GraphKey) -> Tensor:
        """Logits [requests or more, vocab] from what the inputs hold: what a graph captures."""
        inputs, tokens = self._inputs, key.tokens
        attention = self._attention.of(tokens, decodes=key.decodes)
        batch = DecoderInputs(inputs.numbers(tokens), attention)
        mix = head = None
        rows = min(tokens, self.sizes.requests)
        samples = inputs.samples(rows)
        if key.tiles:
            weights = inputs.weights(tokens, linear=key.linear)
            mix = self._mixtures.of_list(key.tiles, key.reach, weights)
            head = mix.of_tokens(samples)
        hidden, finite = self._decoder.hidden(batch, mix, inputs.hidden_states[:tokens])
        inputs.finite[:tokens].copy_(finite)
        logits = self._decoder.logits(hidden.index_select(0, samples), head)
        # One buffer for all graphs: each would keep an output of its own, as large as a batch's.
        return self._logits[:rows].copy_(logits)

    def _eager(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """The same without a graph, for any plan and any weights."""
        arrays, block_size = StepArrays(plan), self._cache.block_size
        slots = arrays.slots(block_size)
        numbers = np.stack((arrays.token_ids, arrays.positions, slots)).astype(np.int32)
        chunks = chunks_of(plan.rows)
        batch = DecoderInputs(
            numbers=self._fed(plan, sent(torch.from_numpy(numbers), self._device)),
            attention=self._operations.attention(chunks, block_size, self._device),
        )
        hidden_states = None
        if plan.reads_hidden_states:
            hidden_states = torch.empty(
                len(arrays.token_ids), self._decoder.hidden_size, device=self._device
            )
        index = sent(torch.from_numpy(arrays.samples), self._device).long()
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
        return ForwardOutput(logits, hidden_states=hidden_states, gates=gates, finite=finite)

    def _fed(self, plan: StepPlan, numbers: Tensor) -> Tensor:
        token_ids = self.feed.of(plan)
        if token_ids is not None:
            numbers[0].copy_(token_ids)
        return numbers

    def _mix_gathered(self, group: Group, x: Tensor, y: Tensor) -> None:
        """By operations on the gathered rows, whatever the mixture is."""
        first = 0
        for path, width in zip(group.paths, group.widths, strict=True):
            self._experts.apply(path, x, y[:, first : first + width])
            first += width
