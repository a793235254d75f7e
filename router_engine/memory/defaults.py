"""The settings that suit a device, in place of those that are left open."""

from __future__ import annotations

import os
from dataclasses import replace

from router_engine.config import AdapterPoolConfig, EngineConfig
from router_engine.errors import EngineError

ADAPTER_SHARE = 0.1  # of a GPU's memory
_GIB = 1 << 30
_HOST_SHARE = 4  # of the host's memory: one part in so many holds copies of adapters for a GPU


def suited(config: EngineConfig, gpu_bytes: int | None) -> EngineConfig:
    """The configuration on a device; None: on a CPU. Only a GPU's `cache.memory_bytes` stays open.

    Raises EngineError for a share of a GPU's memory where there is none.
    """
    scheduler, adapters, is_gpu = config.scheduler, config.adapters, gpu_bytes is not None
    return replace(
        config,
        scheduler=replace(
            scheduler,
            max_step_tokens=scheduler.max_step_tokens or (2048 if is_gpu else 512),
            max_running=scheduler.max_running or (256 if is_gpu else 64),
        ),
        adapters=replace(
            adapters,
            memory_bytes=_adapter_bytes(adapters, gpu_bytes),
            host_bytes=_host_bytes(adapters, is_gpu=is_gpu),
        ),
        cache=config.cache
        if is_gpu or config.cache.memory_bytes is not None
        else replace(config.cache, memory_bytes=_GIB),
    )


def _adapter_bytes(adapters: AdapterPoolConfig, gpu_bytes: int | None) -> int:
    if adapters.memory_bytes is not None:
        return adapters.memory_bytes
    if gpu_bytes is not None:
        share = ADAPTER_SHARE if adapters.memory_share is None else adapters.memory_share
        return int(gpu_bytes * share)
    if adapters.memory_share is not None:
        raise EngineError(
            f"adapter_memory {adapters.memory_share:.0%} is a share of a GPU's memory, and the "
            "engine runs on a CPU: give bytes, such as 1GiB"
        )
    return _GIB


def _host_bytes(adapters: AdapterPoolConfig, *, is_gpu: bool) -> int:
    if adapters.host_bytes is not None:
        return adapters.host_bytes
    if not is_gpu:
        return _GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _HOST_SHARE
