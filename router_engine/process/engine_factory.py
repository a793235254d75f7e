"""Puts an engine together from its process' config: adapters by URL, routers by registry."""

from __future__ import annotations

from collections.abc import Callable

from adapters_store.blobs import open_blobs
from router_engine.engine import Engine
from router_engine.process.messages import EngineProcessConfig
from router_engine.processors import limit_torch
from router_engine.routers.registry import RouterRegistry, TokenServices


def build_engine(config: EngineProcessConfig, wake: Callable[[], None]) -> Engine:
    """An engine over the blobs and routers that `config` names; raises EngineError, StoreError.

    Called on the thread that will run its steps: torch's threads are limited for that one.
    """
    limit_torch()
    adapters = open_blobs(
        config.blobs_url,
        cache_dir=config.blobs_cache_dir,
        cache_bytes=config.blobs_cache_bytes,
    )
    registry = RouterRegistry.discover()
    return Engine(
        config.engine,
        adapters=adapters,
        token_routers=registry.token_routers(TokenServices(wake, config.encoder_endpoint)),
        hidden_routers=registry.hidden_routers(),
        layer_routers=registry.layer_routers(),
        wake=wake,
    )
