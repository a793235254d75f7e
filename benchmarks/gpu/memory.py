"""A start in its parts, and what lies in memory after it."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from benchmarks.gpu.engine import BLOCK, CardEngine
from benchmarks.gpu.phases import CardCell
from benchmarks.gpu.settings import FEW
from benchmarks.gpu.site import Site
from benchmarks.gpu.work import CardBatch

START = "start"


def memory_cells(site: Site) -> list[CardCell]:
    """One cell."""
    return [CardCell(START, lambda: _measure(site))]


def _measure(site: Site) -> dict[str, Any]:
    """Start an engine anew. Kernels may have been compiled, by this process or one before."""
    site.close_engine()
    if site.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine = site.engine
    seconds = {"engine": site.started["engine"]}
    digests = site.digests(FEW)
    started = time.perf_counter()
    engine.wait_for(digests)
    seconds["eight adapters to the device"] = time.perf_counter() - started
    turn = site.work("mixtures").turn("mixtures", CardBatch(*site.settings.sizes.goal), 2)
    seconds["first prompts"] = engine.prefill(turn.requests)
    turn = site.work("mixtures").turn("mixtures", CardBatch(*site.settings.sizes.goal), 2)
    started = time.perf_counter()
    last = engine.decode(turn.requests, turn.skip, 2).seconds
    seconds["first decodes"] = time.perf_counter() - started - sum(last)
    seconds["a decode after them"] = last[-1]
    return {"seconds": seconds, "bytes": _bytes(engine) | _device_bytes(site.device)}


def _bytes(engine: CardEngine) -> dict[str, int]:
    stats, model = engine.engine.stats(), engine.engine.model
    config = model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    element = next(model.parameters()).element_size()
    return {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "KV cache": stats.blocks_total * BLOCK * 2 * config.num_hidden_layers * heads * element,
        "adapters": stats.adapter_memory_bytes,
        "adapters, used": stats.adapter_memory_used_bytes,
        "host, peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _device_bytes(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "device, allocated": torch.cuda.memory_allocated(device),
        "device, peak allocated": torch.cuda.max_memory_allocated(device),
        "device, reserved": torch.cuda.memory_reserved(device),
        "device, peak reserved": torch.cuda.max_memory_reserved(device),
        "device, free": free,
        "device, total": total,
    }
