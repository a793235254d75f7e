"""The budget of one engine: what its device has for weights, adapters and the KV cache."""

from __future__ import annotations

from router_engine.backends.base import Captures
from router_engine.config import EngineConfig
from router_engine.info import MemoryPart
from router_engine.kv.paged_cache import PagedCache, num_blocks_for
from router_engine.memory.defaults import suited
from router_engine.memory.device_plan import Taken, mixture_bytes, planned
from router_engine.memory.gauge import MemoryGauge
from router_engine.memory.graph_memory import measured_bytes
from router_engine.memory.sizes import ModelSizes
from router_engine.model.loader import LoadedModel
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.runner import ModelRunner
from router_engine.scheduling.plan import PlannedRow, StepLimits, StepPlan

_PAST = 64  # tokens past the widest window, for the proof of what computes


class MemoryBudget:
    """On a GPU the KV cache has what is left once the largest step has run; elsewhere, its own."""

    def __init__(
        self, config: EngineConfig, loaded: LoadedModel, gauge: MemoryGauge | None
    ) -> None:
        """gauge: None for a CPU. Raises EngineError for what the device has not."""
        usable = None if gauge is None else int(gauge.total * config.gpu_memory_utilization)
        self.config = suited(config, usable)  # nothing in it is open, but the size of the cache
        self._loaded = loaded
        self._gauge = gauge
        self._others = 0 if gauge is None else gauge.others  # before anything grows
        self.adapter_bytes = self.config.adapter_bytes

    def first_blocks(self) -> int:
        """Blocks of the KV cache until `settle`: on a GPU, those that the largest step needs."""
        cache, loaded = self.config.cache, self._loaded
        if self._gauge is None or cache.num_blocks is not None:
            return num_blocks_for(cache, loaded.kv_shape, loaded.dtype)
        scheduler = self.config.scheduler
        windows = [call.window for call in loaded.attention if call.window is not None]
        tokens = max(scheduler.max_step_tokens, max(windows, default=0) + _PAST)
        return -(-tokens // cache.block_size) + scheduler.max_running

    def settle(
        self, sizes: ModelSizes, cache: PagedCache, runner: ModelRunner, captures: Captures | None
    ) -> tuple[MemoryPart, ...]:
        """Run the largest step, let the cache have the rest; what each part of the memory is.

        captures: the backend's; what they take is measured too, and they are to be made after this.

        Raises EngineError, with the numbers, where it does not fit.
        """
        if self._gauge is None:
            return _parts_of_host(sizes, self.adapter_bytes, cache)
        if captures is not None:
            captures.prepare()  # what steps only read is not counted as theirs
        limits = limits_of(self.config, sizes)
        plan = largest_step(limits, sizes.vocab, cache.num_blocks)
        step = self._gauge.taken_by(lambda: runner.run(plan, None)) + mixture_bytes(limits)
        graphs = measured_bytes(captures, self._gauge)
        own = self.config.cache
        kv = own.memory_bytes
        if own.num_blocks is not None:
            kv = own.num_blocks * own.block_size * sizes.kv_token_bytes
        made = planned(
            sizes,
            limits,
            total=self._gauge.total,
            utilization=self.config.gpu_memory_utilization,
            adapters=self.adapter_bytes,
            kv=kv,
            taken=Taken(self._others, step, graphs),
        )
        if made.num_blocks != cache.num_blocks:
            cache.resize(made.num_blocks)
        return made.parts()


def limits_of(config: EngineConfig, sizes: ModelSizes) -> StepLimits:
    """The largest step under a configuration in which nothing is open."""
    scheduler = config.scheduler
    longest = min(scheduler.max_model_len or sizes.max_model_len, sizes.max_model_len)
    return StepLimits(
        scheduler.max_step_tokens, scheduler.max_running, longest, config.cache.block_size
    )


def largest_step(limits: StepLimits, vocab: int, num_blocks: int) -> StepPlan:
    """A step of as many tokens and requests as there may be, and as blocks hold; all are drawn."""
    count = min(limits.requests, limits.tokens, num_blocks)
    room = limits.block_size * (num_blocks // count)
    lengths = [min(room, limits.tokens // count)] * count
    lengths[0] = min(room, limits.tokens - sum(lengths[1:]))
    rows, first = [], 0
    for index, length in enumerate(lengths):
        blocks = -(-length // limits.block_size)
        rows.append(_row(index, length, vocab, tuple(range(first, first + blocks))))
        first += blocks
    return StepPlan(tuple(rows))


def _row(index: int, length: int, vocab: int, blocks: tuple[int, ...]) -> PlannedRow:
    tokens = tuple((7919 * (index + place) + 11) % vocab for place in range(length))
    # Of all ways to draw, the one that takes the most.
    sampling = SamplingSpec(temperature=1.0, top_p=0.9, seed=index)
    return PlannedRow(
        EngineRequest(f"largest step {index}", tokens, sampling=sampling),
        arrival=index,
        token_ids=tokens,
        start=0,
        block_ids=blocks,
        needs_logits=True,
        weight_runs=(),
        known_tokens=tokens,
    )


def _parts_of_host(
    sizes: ModelSizes, adapter_bytes: int, cache: PagedCache
) -> tuple[MemoryPart, ...]:
    tokens = cache.num_blocks * cache.block_size
    return (
        MemoryPart("weights", sizes.weight_bytes, sizes.weights_told),
        MemoryPart("adapters", adapter_bytes, sizes.adapters_told(adapter_bytes)),
        MemoryPart("KV cache", tokens * sizes.kv_token_bytes, f"{tokens:,} tokens"),
    )
