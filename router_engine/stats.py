"""Counters and gauges of one engine, cumulative since it started."""

from __future__ import annotations

from dataclasses import dataclass, field

from router_engine.info import MemoryPart

GATE_BOUNDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class EngineStats:
    steps: int = 0
    running: int = 0
    waiting: int = 0
    waiting_for_adapters: int = 0
    waiting_for_weights: int = 0
    prompt_tokens: int = 0  # computed, cached ones not counted
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps_without_memory: int = 0  # run again with fewer tokens
    blocks_total: int = 0
    blocks_owned: int = 0
    blocks_cached: int = 0
    adapter_memory_bytes: int = 0  # on the device
    adapter_memory_used_bytes: int = 0
    rank_rows_used: int = 0
    memory: tuple[MemoryPart, ...] = ()  # of the device, as in `EngineInfo`
    adapters_device: int = 0
    adapters_host: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    adapter_load_seconds: float = 0.0
    merges: int = 0
    step_seconds: float = 0.0
    # Gates inside layers, of sampled tokens: how many at or below each of GATE_BOUNDS and above the
    # one before, then how many above all.
    gate_counts: tuple[int, ...] = (0,) * (len(GATE_BOUNDS) + 1)
    gate_total: float = 0.0  # their sum
    load_seconds_recent: tuple[float, ...] = field(default=())
    # What computes steps: an instruction set of the C++ decoder, torch, or triton.
    kernels: str = ""
