"""The plan of a GPU's memory: what model and settings fix; the KV cache is the rest.

It is made with a card and without one. Where there is one, what a step takes is measured, and the
card says what others hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router_engine.backends.cuda.graphs import GraphSizes
from router_engine.backends.cuda.room import MAX_COLUMNS, SLOTS
from router_engine.errors import EngineError
from router_engine.info import MemoryPart
from router_engine.kernels.triton.tiling import TILE_ROWS
from router_engine.memory.sizes import ModelSizes
from router_engine.scheduling.plan import StepLimits

_CONTEXT = 600 << 20  # of the driver, for a process: an estimate
WORKSPACE = 96 << 20  # of libraries' matrix products: an estimate
_GRAPH = 2 << 20  # of a captured graph beside what it computes with: an estimate
_TILES = 256  # tiles of rank rows of a large step
_DRAW = 10  # copies of a row's logits in float32 while tokens are drawn


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes of a device that are measured where there is one; None: by an estimate."""

    others: int = _CONTEXT  # what is not ours
    step: int | None = None  # the largest
    graphs: int | None = None  # all of them; 0 where none is captured


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a device, part by part; together they are all of it."""

    total: int
    others: int  # the driver, other processes
    reserve: int  # what is left alone
    weights: int
    buffers: int  # tables and inputs of the decoder
    graphs: int  # of decode steps
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
            MemoryPart("buffers", self.buffers, "inputs and tables of steps"),
            MemoryPart("graphs", self.graphs, _graphs_told(self.graphs, limits)),
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
    taken: Taken | None = None,
) -> MemoryPlan:
    """The plan of a device with `total` bytes.

    adapters: bytes for them. kv: bytes of the KV cache; None: all that is left. Raises EngineError,
    with the numbers and what to change, where it does not fit.
    """
    taken = Taken() if taken is None else taken
    usable = int(total * utilization) - taken.others
    buffers = buffer_bytes(sizes, limits)
    step = step_bytes(sizes, limits) if taken.step is None else taken.step
    graphs = graph_bytes(limits) if taken.graphs is None else taken.graphs
    left = usable - sizes.weight_bytes - buffers - graphs - step - adapters
    given = left if kv is None else kv
    least = 2 * limits.block_size * sizes.kv_token_bytes
    if given > left or given < least:
        parts = {
            "others hold": taken.others,
            "the weights take": sizes.weight_bytes,
            "adapters": adapters,
            "the largest step": step,
            "its buffers": buffers,
            "graphs": graphs,
            "the KV cache at least": max(kv or 0, least),
        }
        raise _short(total, utilization, max(given, least) - left, parts)
    return MemoryPlan(
        total=total,
        others=taken.others,
        reserve=total - taken.others - (usable - left) - given,
        weights=sizes.weight_bytes,
        buffers=buffers,
        graphs=graphs,
        step=step,
        adapters=adapters,
        kv=given,
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
    """What the CUDA decoder keeps beside weights: tables, and inputs of graphs."""
    tables = sizes.max_model_len * sizes.kv.head_dim * sizes.dtype.itemsize  # cosines and sines
    tables += SLOTS * len(sizes.base.linears) * (2 * 8 + 4 + 4)  # of adapters
    graphs = GraphSizes.of(limits)
    blocks = -(-limits.max_model_len // limits.block_size)
    token = 4 * (4 + 4 * MAX_COLUMNS + sizes.base.hidden_size) + 1
    request = 4 * blocks + sizes.vocab * sizes.dtype.itemsize
    return tables + graphs.tokens * token + graphs.requests * request


def graph_bytes(limits: StepLimits) -> int:
    """What all graphs take beside what they compute with: an estimate."""
    return _GRAPH * GraphSizes.of(limits).count


def _short(total: int, utilization: float, short: int, parts: Mapping[str, int]) -> EngineError:
    told = ", ".join(f"{name} {_told(num_bytes)}" for name, num_bytes in parts.items())
    return EngineError(
        f"{total / 2**30:.1f} GiB of GPU memory are {_told(short)} short: of {utilization:.0%} of "
        f"them {told}: use a smaller adapter_memory, kv_memory, max_step_tokens or max_running, a "
        "larger gpu_memory_utilization, a smaller model, or more memory"
    )


def _graphs_told(num_bytes: int, limits: StepLimits) -> str:
    if num_bytes == 0:
        return "none is captured"
    return f"{GraphSizes.of(limits).count:,}, by sizes of steps and of mixtures"


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
