"""A step on the C++ decoder: plan -> arrays -> one call -> logits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from router_engine.backends.base import ForwardOutput
from router_engine.backends.cpu.adapter_pointers import AdapterPointers
from router_engine.backends.cpu.packed_model import PackedModel
from router_engine.backends.cpu.structures import (
    GatingStruct,
    LayerRoutedTokensStruct,
    PromptStruct,
    StepStruct,
    WeightsStruct,
)
from router_engine.backends.step_arrays import StepArrays
from router_engine.experts.gate_tensors import GateTensors
from router_engine.experts.gate_values import gate_readings, known_gates
from router_engine.experts.rows import RowPool
from router_engine.mixture.weights import StepWeights
from router_engine.model.sampler import LogitSummary
from router_engine.scheduling.plan import StepPlan

_LANES = 16


class CpuSteps:
    """Runs whole steps on a packed model; owns what it needs between them."""

    def __init__(
        self, model: PackedModel, pool: RowPool, vocab_size: int, probe_layer: int
    ) -> None:
        self.model = model
        self._probe_layer = probe_layer
        self._pool = pool
        self._vocab = vocab_size
        self._stride = -(-vocab_size // _LANES) * _LANES
        self._buffer = torch.empty(0)
        self._adapters = AdapterPointers(pool, model.sites, model.layers)

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`. The logits are in fp32 and overwritten by the next call."""
        arrays = StepArrays(plan)
        rows = arrays.rows
        logits = self._room(len(arrays.samples))
        best = torch.empty(len(arrays.samples), dtype=torch.int64)
        normaliser = torch.empty(len(arrays.samples))
        readings = self._readings(weights, len(arrays.token_ids))
        mixture = _Mixture(weights, self._pool, self._adapters, readings)
        below_probe = _Mixture(
            weights and weights.below_probe, self._pool, self._adapters, readings
        )
        hidden_states = (
            torch.empty(len(arrays.token_ids), self.model.hidden)
            if plan.reads_hidden_states
            else None
        )
        finite = torch.empty(len(arrays.token_ids), dtype=torch.bool)
        step = StepStruct(
            token_ids=arrays.token_ids.ctypes.data,
            positions=arrays.positions.ctypes.data,
            rows=rows.ctypes.data,
            blocks=arrays.blocks.ctypes.data,
            sample_index=arrays.samples.ctypes.data,
            logits=logits.data_ptr(),
            best=best.data_ptr(),
            normaliser=normaliser.data_ptr(),
            weights=mixture.weights,
            below_probe=below_probe.weights,
            hidden_states=None if hidden_states is None else hidden_states.data_ptr(),
            finite=finite.data_ptr(),
            tokens=len(arrays.token_ids),
            num_rows=len(rows),
            samples=len(arrays.samples),
            logits_stride=self._stride,
            threads=torch.get_num_threads(),
            probe_layer=self._probe_layer if plan.reads_hidden_states else 0,
        )
        self.model.library.run_model(self.model.handle, step)
        if self._stride != self._vocab:
            logits = logits[:, : self._vocab].contiguous()
        if weights is not None and readings is not None and weights.prompts:
            values, columns = readings.values, readings.columns
            readings = gate_readings(self._pool, weights, columns, values, self._probe_layer)
        return ForwardOutput(
            logits, LogitSummary(best, normaliser), hidden_states, readings, finite
        )

    def _readings(self, weights: StepWeights | None, tokens: int) -> GateTensors | None:
        """Room for the gates of a step's adapters, if any has a router."""
        if weights is None or self._pool.are_plain_lora(weights.digests):
            return None
        columns = self._pool.gate_columns(weights.digests)
        if not columns:
            return None
        layers = len(self.model.layers)
        return GateTensors(known_gates(layers, tokens, columns, weights.prompts), columns)

    def _room(self, samples: int) -> Tensor:
        """[samples, stride], in memory that is kept: fresh pages are megabytes of faults a step."""
        size = samples * self._stride
        if size > len(self._buffer):
            self._buffer = torch.empty(size)
            self.model.library.large_pages(self._buffer)
        return self._buffer[:size].view(samples, self._stride)


class _Mixture:
    """The step's weights as the decoder reads them. Keep it while the decoder runs."""

    def __init__(
        self,
        weights: StepWeights | None,
        pool: RowPool,
        pointers: AdapterPointers,
        readings: GateTensors | None,
    ) -> None:
        self.weights = WeightsStruct()
        if weights is None:
            return
        self._experts = [pointers.experts(digest) for digest in weights.digests]
        self._expert_pointers = _addresses(self._experts)
        parts = (weights.sum_weights, weights.sqrt_weights, weights.merged_sqrt_weights)
        self._parts = [None if part is None else part.contiguous() for part in parts]
        self.weights.columns = len(self._experts)
        self.weights.has_other_sites = not pool.are_plain_lora(weights.digests)
        self.weights.experts = ctypes.addressof(self._expert_pointers)
        total, root, merged_root = (
            None if part is None else part.data_ptr() for part in self._parts
        )
        self.weights.sum_weights, self.weights.sqrt_weights = total, root
        self.weights.merged_sqrt_weights = merged_root
        if weights.layer_routed is not None:
            routed = weights.layer_routed
            self._routed = (routed.top_k, routed.temperature, routed.candidates.contiguous())
            self.weights.routed = LayerRoutedTokensStruct(
                *(part.data_ptr() for part in self._routed)
            )
        if readings is not None:
            self._gate(weights, pool, pointers, readings)

    def _gate(
        self, weights: StepWeights, pool: RowPool, pointers: AdapterPointers, readings: GateTensors
    ) -> None:
        digests = weights.digests
        first = {digest: first for digest, first, _ in readings.columns}
        self._networks = [
            pointers.networks(digest) if digest in first else None for digest in digests
        ]
        self._network_pointers = _addresses(self._networks)
        self._first = (ctypes.c_int32 * len(digests))(*(first.get(each, 0) for each in digests))
        prompts = [
            PromptStruct(digests.index(digest), each.first, each.count, each.prompt)
            for each in weights.prompts
            if each.kept is None
            for digest in each.adapters
            if digest in first and pool.reads_whole_prompts(digest)
        ]
        self._prompts = (PromptStruct * len(prompts))(*prompts)
        self.weights.gating = GatingStruct(
            networks=ctypes.addressof(self._network_pointers),
            first=ctypes.addressof(self._first),
            gates=readings.values.data_ptr(),
            prompts=ctypes.addressof(self._prompts),
            num_prompts=len(prompts),
            width=readings.values.shape[-1],
        )


def _addresses(arrays: Sequence[ctypes.Array[Any] | None]) -> ctypes.Array[ctypes.c_void_p]:
    addresses = (None if array is None else ctypes.addressof(array) for array in arrays)
    return (ctypes.c_void_p * len(arrays))(*addresses)
