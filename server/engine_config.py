"""The engine's configuration, from the server's settings."""

from __future__ import annotations

from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    KernelConfig,
    MergeConfig,
    ModelConfig,
    SchedulerConfig,
)
from server.settings import Settings
from server.shares import Share


def engine_config(settings: Settings, model: str) -> EngineConfig:
    """What the engine is to run, with `model` already resolved to what the loader reads."""
    kv, host, memory = settings.kv_memory, settings.host_bytes, settings.adapter_memory
    return EngineConfig(
        model=ModelConfig(
            model,
            settings.dtype,
            settings.device,
            settings.quantization,
            settings.tap_layer,
            settings.revision,
        ),
        cache=CacheConfig(
            settings.block_size,
            settings.kv_blocks,
            None if kv is None else int(kv),
            settings.prefix_cache,
        ),
        scheduler=SchedulerConfig(
            settings.max_step_tokens or 0,
            settings.max_running or 0,
            settings.max_model_len,
            settings.policy,
            settings.fairness,
        ),
        adapters=AdapterPoolConfig(
            memory_bytes=None if memory is None or isinstance(memory, Share) else int(memory),
            memory_share=memory if isinstance(memory, Share) else None,
            host_bytes=None if host is None else int(host),
        ),
        merge=MergeConfig(settings.merge),
        kernels=KernelConfig(
            settings.kernels,
            settings.cache_dir / "kernels",
            enforce_eager=settings.enforce_eager,
            attention=settings.attention,
        ),
        gpu_memory_utilization=settings.gpu_memory_utilization,
    )
