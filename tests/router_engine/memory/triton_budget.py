"""Engines whose card is a pretended one, for a process whose kernels run in an interpreter."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from router_engine.backends.cuda.cuda_backend import CudaBackend
from router_engine.backends.cuda.graph_attention import TritonGraphAttention
from router_engine.backends.cuda.graphs import GraphSizes, Replay
from router_engine.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.errors import EngineError
from router_engine.memory.budget import limits_of
from router_engine.memory.device_plan import (
    WORKSPACE,
    mixture_bytes,
    step_bytes,
)
from router_engine.memory.sizes import ModelSizes, sizes_of_checkpoint
from router_engine.scheduling.plan import StepLimits
from tests.support.harness import EngineHarness, request
from tests.support.tiny import save_family

MIB = 1 << 20
GRAPH = 3 << 10
PROMPT = list(range(5, 40))
LIMITS = SchedulerConfig(max_step_tokens=64, max_running=8)


@dataclass
class _Card:
    """A gauge that counts what torch takes on the CPU, and graphs, which are of one size."""

    total: int
    others: int = MIB
    taken: list[int] = field(default_factory=list)
    captured: int = 0

    def taken_by(self, work: Callable[[], object]) -> int:
        self.taken.append(peak_of(work))
        return self.taken[-1]

    def kept_by(self, work: Callable[[], object]) -> int:
        before = self.captured
        work()
        return GRAPH * (self.captured - before)

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """As `run_directly`."""
        self.captured += 1
        return work


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which what torch holds grows, at its height, while `work` runs.

    The interpreter keeps what a kernel was given in cycles, which a card's launch does not.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20, *before[1:])
    try:
        return _peak_of(work)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _peak_of(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    events = trace.profiler.kineto_results.events()
    memory = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = most = 0
    for _, num_bytes in sorted(memory, key=lambda each: each[0]):
        held += num_bytes
        most = max(most, held)
    return most


def _config() -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(device="cpu"),
        cache=CacheConfig(memory_bytes=None),
        scheduler=LIMITS,
        kernels=KernelConfig("triton"),
    )


@contextmanager
def _engine(card: _Card, root: Path, config: EngineConfig) -> Iterator[EngineHarness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router_engine.assembly.gauge_for", lambda device: card)
        patch.setattr("router_engine.backends.cuda.cuda_backend.run_directly", card.capture)
        harness = EngineHarness(root / "planned", _model(root), config)
    try:
        yield harness
    finally:
        harness.close()


def check_the_cache_has_what_is_left(root: str) -> None:
    """Answers are those of an engine that was given its cache; the parts are all of the card.

    A step's estimate is from above, and not by much; the buffers are those that are counted.
    """
    card, model = _Card(512 * MIB), _model(Path(root))
    plain = EngineHarness(Path(root) / "plain", model, EngineConfig(scheduler=LIMITS))
    asked = [request(f"r{i}", PROMPT, max_new_tokens=2 * i + 2) for i in range(8)]
    expected = [answer.ids for answer in plain.run(*asked)]
    plain.close()
    with _engine(card, Path(root), _config()) as planned:
        before = card.captured
        assert [answer.ids for answer in planned.run(*asked)] == expected
        assert card.captured == before, "a step captured a graph"
        engine = planned.engine
        parts = {part.name: part.num_bytes for part in engine.info.memory}
        assert sum(parts.values()) == card.total
        assert parts["step"] == card.taken[0] + mixture_bytes(_limits(model))
        assert engine.base.adapter_bytes == parts["adapters"]
        assert engine.stats().memory == engine.info.memory
        assert engine.stats().blocks_total == engine.info.kv_blocks
        held = sum(store.nbytes for store in (*engine._cache.keys, *engine._cache.values))
        assert 0 <= parts["KV cache"] - held < held // engine.info.kv_blocks
        assert isinstance(engine.backend, CudaBackend)
        assert engine.backend.graphs is not None
        assert parts["graphs"] == GRAPH * len(engine.backend.graphs)
        assert len(engine.backend.graphs) == GraphSizes.of(_limits(model)).count
        _check_buffers(engine.backend, parts["buffers"])
    limits = _limits(model)
    estimate = step_bytes(_sizes(model), limits) - mixture_bytes(limits) - WORKSPACE
    assert card.taken[0] <= estimate <= 2 * card.taken[0], (card.taken, estimate)


def _check_buffers(backend: CudaBackend, counted: int) -> None:
    """Tables, and inputs; but for lists of attention's work, of some kilobytes."""
    steps = backend._steps
    assert steps is not None
    table, inputs, attention = steps._mixtures._slots.table, steps._inputs, steps._attention
    assert isinstance(attention, TritonGraphAttention)
    held = [*steps._decoder._angles, steps._logits, table.addresses, table.ranks, table.roots]
    held += [inputs._numbers.device, attention.tables, *inputs._weights.parts]
    held += [inputs.hidden_states, inputs.finite]
    excess = counted - sum(each.nbytes for each in held)
    works = sum(buffers.device.nbytes for _, buffers in attention._works.values())
    assert excess == 0
    assert works < 1 << 14


def check_what_is_asked_for_is_kept(root: str) -> None:
    """Blocks that are counted stay as many; a card that is too small is told with its numbers."""
    config, model = replace(_config(), cache=CacheConfig(num_blocks=48)), _model(Path(root))
    with _engine(_Card(512 * MIB), Path(root), config) as planned:
        parts = {part.name: part.num_bytes for part in planned.engine.info.memory}
        assert planned.engine.info.kv_blocks == 48
        assert parts["KV cache"] == 48 * 16 * _sizes(model).kv_token_bytes
    with (
        pytest.raises(EngineError, match=r"0\.0 GiB of GPU memory are 0\.\d+ GiB short"),
        _engine(_Card(8 * MIB), Path(root) / "small", _config()),
    ):
        pass


def _model(root: Path) -> Path:
    path = root / "model"
    return path if path.exists() else save_family(path, "llama")


def _sizes(model: Path) -> ModelSizes:
    return sizes_of_checkpoint(ModelConfig(str(model)), torch.device("cpu"))


def _limits(model: Path) -> StepLimits:
    return limits_of(_config(), _sizes(model))
