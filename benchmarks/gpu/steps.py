"""Decode steps of an engine in this process, all requests in the batch from first to last step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from router_engine.backends.cuda.cuda_backend import CudaBackend
from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.engine import Engine
from router_engine.offline import OfflineEngine
from router_engine.request import EngineRequest, SamplingSpec

CASES = ("base", "eight", "mixtures")
_WARMUP = 3  # steps after the last prompt: graphs are captured, adapters' tables written
_MEMBERS = 4  # adapters of a mixture
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class CardSizes:
    """The size of one measurement."""

    requests: int
    context: int  # tokens of a prompt
    steps: int  # timed


@dataclass(frozen=True, slots=True)
class CardTurn:
    """One measurement. seconds: of each step, host included. device_seconds: of the graph alone."""

    seconds: tuple[float, ...]
    device_seconds: float | None


class EngineSteps:
    """One engine with adapters on the device."""

    def __init__(
        self, model: Path, adapters: Sequence[Path], kernels: str, sizes: CardSizes
    ) -> None:
        self._sizes = sizes
        store = model.parent / "store"
        blocks = -(-(sizes.context + sizes.steps + 64) // _BLOCK)
        config = EngineConfig(
            model=ModelConfig(str(model), dtype="bfloat16"),
            cache=CacheConfig(block_size=_BLOCK, num_blocks=2 * sizes.requests * blocks),
            scheduler=SchedulerConfig(max_step_tokens=4096, max_running=sizes.requests),
            adapters=AdapterPoolConfig(memory_bytes=4 << 30),
            kernels=KernelConfig(kernels),
        )

        def without_routers(wake: Callable[[], None]) -> Engine:
            adapters = open_blobs(store / "blobs")
            return Engine(config, adapters=adapters, token_routers={}, wake=wake)

        self._offline = OfflineEngine(without_routers, AdapterStore.open(store))
        self._digests = [self._offline.publish(folder.name, folder) for folder in adapters]
        self._turns = 0

    @property
    def engine(self) -> Engine:
        return self._offline.engine

    @property
    def weight_bytes(self) -> int:
        """Bytes that every step reads: all parameters but the embedding, of which it reads rows."""
        model = self.engine.model
        embedding = model.get_input_embeddings().weight
        total = sum(parameter.nbytes for parameter in model.parameters())
        tied = model.get_output_embeddings().weight is embedding
        return int(total if tied else total - embedding.nbytes)

    def turn(self, case: str) -> CardTurn:
        """Consecutive decode steps of a case, prompts and first steps not counted."""
        self._turns += 1
        sizes, start = self._sizes, self.engine.stats().generated_tokens
        for row in range(sizes.requests):
            self._offline.add_request(self._request(case, row))
        while self.engine.stats().generated_tokens < start + sizes.requests * (1 + _WARMUP):
            self._offline.step()
        seconds: list[float] = []
        for _ in range(sizes.steps):
            started = time.perf_counter()
            self._offline.step()
            seconds.append(time.perf_counter() - started)
        device_seconds = self._device_seconds()
        self._offline.abort_requests(f"{self._turns} {row}" for row in range(sizes.requests))
        self._offline.run_until_idle()
        return CardTurn(tuple(seconds), device_seconds)

    def close(self) -> None:
        self._offline.close()

    def _device_seconds(self) -> float | None:
        """The last step's graph run again and again; None where there are no graphs."""
        backend = self.engine.backend
        graphs = backend.graphs if isinstance(backend, CudaBackend) else None
        if graphs is None or not torch.cuda.is_available():
            return None
        event: Any = torch.cuda.Event  # untyped in torch
        first, last = (event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(self._sizes.steps):
            graphs.again()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) / 1000 / self._sizes.steps

    def _request(self, case: str, row: int) -> EngineRequest:
        chance = random.Random(row)
        vocabulary = self.engine.info.vocab_size
        prompt = tuple(chance.randrange(3, vocabulary) for _ in range(self._sizes.context))
        digests, weights = self._mixture(case, row, chance)
        return EngineRequest(
            f"{self._turns} {row}",
            prompt,
            # More than is ever computed; all requests stay until they are cancelled.
            SamplingSpec(max_new_tokens=self._sizes.steps + 48),
            adapters=digests,
            weights=weights,
        )

    def _mixture(
        self, case: str, row: int, chance: random.Random
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """`mixtures`: four of all adapters under weights of its own, another one for each row."""
        if case == "base":
            return (), ()
        if case == "eight":
            return (self._digests[row % len(self._digests)],), (1.0,)
        members = chance.sample(self._digests, _MEMBERS)
        return tuple(members), tuple(chance.uniform(0.1, 0.5) for _ in members)
