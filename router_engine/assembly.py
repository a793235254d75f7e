"""The parts of an engine that compute, made of a configuration: model, memory, backend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapters_store.types import BaseModelSpec
from router_engine.backends.base import Backend
from router_engine.backends.proof import Proof
from router_engine.backends.select import BackendRegistry
from router_engine.backends.spec import BackendParts
from router_engine.backends.torch.wrapped_layers import prepare_model
from router_engine.config import EngineConfig
from router_engine.errors import UnsupportedModelError
from router_engine.experts.memory import memory_for
from router_engine.experts.rows import RowPool
from router_engine.experts.step import StepExperts
from router_engine.info import MemoryPart
from router_engine.kernels.dispatch import make_operations
from router_engine.kv.paged_cache import PagedCache
from router_engine.memory.budget import MemoryBudget, limits_of
from router_engine.memory.gauge import gauge_for, told_where_short
from router_engine.memory.graph_memory import capture_all
from router_engine.memory.sizes import sizes_of
from router_engine.model.loader import LoadedModel, base_spec, blocks_of, load_model
from router_engine.runner import ModelRunner


@dataclass(frozen=True, slots=True)
class ComputingParts:
    """config: nothing in it is left open, but on a GPU the size of the cache, which is there."""

    config: EngineConfig
    loaded: LoadedModel
    base: BaseModelSpec
    experts: StepExperts
    cache: PagedCache
    backend: Backend
    runner: ModelRunner
    memory: tuple[MemoryPart, ...]


def assemble(config: EngineConfig) -> ComputingParts:
    """Load the model, make its memory and what computes it. Raises EngineError for what cannot be.

    On a GPU the largest step runs once, so that the KV cache may have what is left.
    """
    with told_where_short("the model's weights", "use a smaller model or dtype, or int8"):
        loaded = load_model(config.model)
    budget = MemoryBudget(config, loaded, gauge_for(loaded.device))
    config, model = budget.config, loaded.model
    memory = memory_for(loaded.device, budget.adapter_bytes)
    spec, kernels = BackendRegistry.discover().choose(config.kernels.kernels, loaded)
    if config.kernels.attention != "triton" and spec.name != "cuda":
        raise UnsupportedModelError(
            f"attention {config.kernels.attention!r} is for a GPU, and {spec.name!r} computes: "
            "leave attention out"
        )
    operations = make_operations(kernels)
    pool = RowPool(memory, dtype=loaded.dtype, device=loaded.device)
    experts = StepExperts(pool, operations, blocks_of(model), loaded.probe_layer)
    linears = prepare_model(model, experts)
    shapes = {path: linear.shape for path, linear in linears.items()}
    base = replace(
        base_spec(config.model.model, model, shapes, loaded.embeddings),
        element_bytes=loaded.dtype.itemsize,
        adapter_bytes=memory.num_bytes,
    )
    sizes = sizes_of(model, loaded.kv_shape, loaded.dtype, base)
    shape, size = loaded.kv_shape, config.cache.block_size
    cache = PagedCache(shape, budget.first_blocks(), size, dtype=loaded.dtype, device=loaded.device)
    proof = Proof(loaded, experts, cache, config.kernels.cache)
    backend = spec.make(
        BackendParts(
            *(config.kernels, loaded, linears, experts, cache, operations, proof),
            limits=limits_of(config, sizes),
        )
    )
    runner = ModelRunner(backend, loaded.device)
    parts = budget.settle(sizes, cache, runner, backend.captures)
    capture_all(backend.captures)
    return ComputingParts(config, loaded, base, experts, cache, backend, runner, parts)
