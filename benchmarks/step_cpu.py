"""Decode steps of an engine in this process: what a step takes without HTTP around it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from benchmarks.subject import Subject, write_adapters
from router_engine.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    Kernels,
    ModelConfig,
    Quantization,
    SchedulerConfig,
)
from router_engine.engine import Engine
from router_engine.request import EngineRequest, SamplingParams

CASES = ("base", "one adapter", "eight adapters", "mixtures of four")
CONTEXT = 128  # tokens of every prompt
_STEPS = 16  # timed steps of one turn
_WARMUP = 2  # steps after the last prompt that do not count
_MIXTURE = (0.4, 0.3, 0.2, 0.1)
_NUM_ADAPTERS = 8
_LOAD_TIMEOUT_S = 60.0


class StepBench:
    """One engine with eight random rank-8 adapters (q, k, v, o) on the device."""

    def __init__(
        self, model: str, kernels: Kernels, folder: Path, quantization: Quantization = "none"
    ) -> None:
        self._news = threading.Event()
        self._store = AdapterStore.open(folder / "store")
        self._engine = Engine(
            EngineConfig(
                model=ModelConfig(model, "bfloat16", "cpu", quantization),
                cache=CacheConfig(num_blocks=1024),
                scheduler=SchedulerConfig(max_running=256),
                kernels=KernelConfig(kernels),
            ),
            adapters=open_blobs(folder / "store" / "blobs"),
            token_routers={},
            wake=self._news.set,
        )
        subject = Subject.of(model)
        names = [f"a{index}" for index in range(_NUM_ADAPTERS)]
        self._digests = [
            self._store.publish(path.name, path, base=self._engine.base).digest
            for path in write_adapters(subject, folder / "adapters", names)
        ]
        self._turns = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes that every step reads: all parameters, a tied embedding once."""
        return sum(parameter.nbytes for parameter in self._engine.model.parameters())

    def decode_seconds(self, case: str, rows: int) -> list[float]:
        """Seconds of consecutive decode steps with `rows` requests, prompts not counted.

        Prompts repeat from turn to turn, so their KV comes from the prefix cache.
        """
        self._turns += 1
        for row in range(rows):
            self._engine.add_request(self._request(case, row))
        generated = self._engine.stats().generated_tokens
        while self._engine.stats().generated_tokens < generated + rows * (1 + _WARMUP):
            self._step()
        seconds = []
        for _ in range(_STEPS):
            started = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - started)
        while self._engine.has_work:
            self._step()
        return seconds

    def close(self) -> None:
        self._engine.close()
        self._store.close()

    def _step(self) -> None:
        if not self._engine.has_work and not self._news.wait(_LOAD_TIMEOUT_S):
            raise TimeoutError("the adapters were not loaded")
        self._news.clear()
        self._engine.step()

    def _request(self, case: str, row: int) -> EngineRequest:
        generator = torch.Generator().manual_seed(row)
        prompt = torch.randint(3, self._engine.info.vocab_size, (CONTEXT,), generator=generator)
        digests, weights = self._mixture(case, row)
        # Long enough that no request ends while others are being prefilled or timed.
        return EngineRequest(
            f"{self._turns} {row}",
            tuple(prompt.tolist()),
            SamplingParams(max_new_tokens=_STEPS + _WARMUP + 16),
            adapters=digests,
            weights=weights,
        )

    def _mixture(self, case: str, row: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        if case == "base":
            return (), ()
        if case == "one adapter":
            return (self._digests[0],), (1.0,)
        if case == "eight adapters":
            return (self._digests[row % _NUM_ADAPTERS],), (1.0,)
        members = [(row + offset) % _NUM_ADAPTERS for offset in range(len(_MIXTURE))]
        return tuple(self._digests[member] for member in members), _MIXTURE
