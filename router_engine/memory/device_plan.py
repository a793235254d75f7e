"""The plan of a GPU's memory: what model and settings fix; the KV cache is the rest.

It is made with a card and without one. Where there is one, what a step takes is measured, and the
card says what others hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from router_engine.backends.cuda.graphs import BATCH_BUCKETS, MAX_COLUMNS, TILE_BUCKETS
from router_engine.backends.cuda.slots import SLOTS
from router_engine.errors import EngineError
from router_engine.info import MemoryPart
from router_engine.kernels.triton.grouped import TILE_ROWS
from router_engine.memory.sizes import ModelSizes

_CONTEXT = 600 << 20  # of the driver, for a process: an estimate
WORKSPACE = 96 << 20  # of libraries' matrix products: an estimate
_GRAPH = 2 << 20  # of a captured graph beside what it computes with: an estimate
_TILES = 256  # tiles of rank rows of a large step
_DRAW = 5  # copies of a row's logits in float32 while tokens are drawn


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step. max_model_len: tokens of the longest sequence."""

    tokens: int
    requests: int
    max_model_len: int
    block_size: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a device, part by part; together they are all of it."""

    total: int
    others: int  # the driver, other processes
    reserve: int  # what is left alone
    weights: int
    buffers: int  # tables, inputs and graphs of the decoder
    step: int  # the largest step while it runs
    adapters: int
    kv: int
    sizes: ModelSizes
    limits: StepLimits

    @property
    def kv_tokens(self) -> int:
        return self.kv // self.sizes.kv_token_bytes

    @property
    def num_blocks(self) -> int:
        """Of the KV cache."""
        return self.kv_tokens // self.limits.block_size

    def parts(self) -> tuple[MemoryPart, ...]:
        """All of the device."""
        sizes, limits = self.sizes, self.limits
        sequences = self.kv_tokens / limits.max_model_len
        told = f"{self.kv_tokens:,} tokens, {sequences:.1f} sequences of {limits.max_model_len:,}"
        drawn = f"{limits.tokens:,} tokens, {limits.requests:,} of them drawn from"
        return (
            MemoryPart("weights", self.weights, sizes.weights_told),
            MemoryPart("adapters", self.adapters, sizes.adapters_told(self.adapters)),
            MemoryPart("KV cache", self.kv, told),
            MemoryPart("step", self.step, drawn),
            MemoryPart("buffers", self.buffers, "inputs, tables and graphs of decode steps"),
            MemoryPart("others", self.others, "the driver and other processes"),
            MemoryPart("reserve", self.reserve, "left alone: gpu_memory_utilization"),
        )


def planned(
    sizes: ModelSizes,
    limits: StepLimits,
    *,
    total: int,
    utilization: float,
    adapters: int,
    kv: int | None = None,
    others: int = _CONTEXT,
    step: int | None = None,
) -> MemoryPlan:
    """The plan of a device with `total` bytes, of which `others` are not ours.

    adapters: bytes for them. kv: bytes of the KV cache; None: all that is left. step: bytes of the
    largest step where that was measured. Raises EngineError, with the numbers and what to change,
    where it does not fit.
    """
    usable = int(total * utilization) - others
    buffers = buffer_bytes(sizes, limits)
    step = step_bytes(sizes, limits) if step is None else step
    left = usable - sizes.weight_bytes - buffers - step - adapters
    taken = left if kv is None else kv
    least = 2 * limits.block_size * sizes.kv_token_bytes
    if taken > left or taken < least:
        short = max(taken, least) - left
        raise EngineError(
            f"{total / 2**30:.1f} GiB of GPU memory are {_told(short)} short: of {utilization:.0%} "
            f"of them others hold {_told(others)}, the weights take {_told(sizes.weight_bytes)}, "
            f"adapters {_told(adapters)}, the largest step {_told(step)}, its buffers "
            f"{_told(buffers)}, the KV cache at least {_told(max(kv or 0, least))}: use a smaller "
            "adapter_memory, kv_memory, max_step_tokens or max_running, a larger "
            "gpu_memory_utilization, a smaller model, or more memory"
        )
    return MemoryPlan(
        total=total,
        others=others,
        reserve=total - others - (usable - left) - taken,
        weights=sizes.weight_bytes,
        buffers=buffers,
        step=step,
        adapters=adapters,
        kv=taken,
        sizes=sizes,
        limits=limits,
    )


def step_bytes(sizes: ModelSizes, limits: StepLimits) -> int:
    """The most that the largest step holds at once, an estimate from above."""
    hidden, element = sizes.base.hidden_size, sizes.dtype.itemsize
    # What attention has made is held while the feed-forward runs.
    numbers = 6 * hidden + 2 * sizes.attention + sizes.feed_forward + sizes.feed_forward // 2
    token = element * numbers
    row = sizes.vocab * (element + 4 * _DRAW)
    held = limits.tokens * token + limits.requests * row
    return held + mixture_bytes(limits) + WORKSPACE


def mixture_bytes(limits: StepLimits) -> int:
    """The part of a step's bytes that mixtures have: the inner sums of three modules."""
    return limits.tokens * 3 * _TILES * TILE_ROWS * 4


def buffer_bytes(sizes: ModelSizes, limits: StepLimits) -> int:
    """What the CUDA decoder keeps beside weights: tables, inputs of graphs, the graphs."""
    tables = sizes.max_model_len * sizes.kv.head_dim * sizes.dtype.itemsize  # cosines and sines
    tables += SLOTS * len(sizes.base.linears) * (2 * 8 + 4)  # addresses and ranks of adapters
    blocks = -(-sizes.max_model_len // limits.block_size)
    row = 4 * (4 + blocks + 2 * MAX_COLUMNS + sizes.base.hidden_size + 1) + 1
    larger = [bucket for bucket in BATCH_BUCKETS if bucket >= limits.requests]
    batches = [bucket for bucket in BATCH_BUCKETS if bucket < limits.requests] + larger[:1]
    logits = BATCH_BUCKETS[-1] * sizes.vocab * sizes.dtype.itemsize
    return tables + logits + sum(batches) * row + graph_bytes(len(batches))


def graph_bytes(batches: int) -> int:
    """The graphs of so many batch sizes: each without a mixture, and by lists of tiles."""
    return _GRAPH * batches * (1 + len(TILE_BUCKETS))


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
