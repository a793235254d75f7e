"""An engine in this process, stepped and timed: batches of decodes, prompts, and what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from benchmarks.gpu.settings import CardSettings
from router_engine.backends.cuda.cuda_backend import CudaBackend
from router_engine.backends.cuda.graphs import Graphs
from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.engine import Engine
from router_engine.errors import EngineError
from router_engine.offline import OfflineEngine, RequestOutput
from router_engine.request import EngineRequest
from router_engine.routers.given import GivenTokenRouter
from router_engine.routers.hidden_mean import HiddenMeanRouter

BLOCK = 16  # tokens of a block of the KV cache
_HOST_BYTES = 1 << 36  # of adapters: what was on the device once is not read from disk again


@dataclass(frozen=True, slots=True)
class CardTurn:
    """Consecutive decode steps of one batch.

    seconds: of each step, host included. device_seconds: of the last one's graph alone, None
    without graphs. blocks: of the KV cache, that the requests own at the end. prompt_tokens: that
    were computed before the steps, those found in the prefix cache not counted.
    """

    seconds: tuple[float, ...]
    device_seconds: float | None
    blocks: int
    prompt_tokens: int


class CardEngine:
    """An engine over the store in a folder. Raises EngineError where it doesn't fit the device."""

    def __init__(
        self, model: Path, store: Path, settings: CardSettings, adapter_bytes: int
    ) -> None:
        sizes = settings.sizes
        config = EngineConfig(
            model=ModelConfig(str(model), dtype="bfloat16"),
            cache=CacheConfig(block_size=BLOCK, num_blocks=sizes.kv_tokens // BLOCK),
            scheduler=SchedulerConfig(
                max_step_tokens=sizes.step_tokens, max_running=max(sizes.requests)
            ),
            adapters=AdapterPoolConfig(memory_bytes=adapter_bytes, host_bytes=_HOST_BYTES),
            kernels=KernelConfig(settings.kernels),
        )

        def with_two_routers(wake: Callable[[], None]) -> Engine:
            return Engine(
                config,
                adapters=open_blobs(store / "blobs"),
                token_routers={"given": GivenTokenRouter(wake=wake)},
                hidden_routers={"hidden_mean": HiddenMeanRouter()},
                wake=wake,
            )

        self.adapter_bytes = adapter_bytes
        self.filled: set[object] = set()  # batches whose prompts were computed once
        self.offline = OfflineEngine(with_two_routers, AdapterStore.open(store))

    @property
    def engine(self) -> Engine:
        return self.offline.engine

    @property
    def is_sound(self) -> bool:
        """Whether it has let go of every request: not where an error kept it from that."""
        return not self.offline.has_unfinished_requests

    @property
    def weight_bytes(self) -> int:
        """Bytes that every step reads: all parameters but the embedding, of which it reads rows."""
        model = self.engine.model
        embedding = model.get_input_embeddings().weight
        total = sum(parameter.nbytes for parameter in model.parameters())
        tied = model.get_output_embeddings().weight is embedding
        return int(total if tied else total - embedding.nbytes)

    @property
    def captures(self) -> int:
        """Graphs captured so far."""
        graphs = self._graphs
        return 0 if graphs is None else len(graphs)

    def decode(
        self,
        requests: Sequence[EngineRequest],
        skip: int,
        steps: int,
        within: AbstractContextManager[object] | None = None,
    ) -> CardTurn:
        """Steps in which each request gets one token, after each has had `skip`.

        The steps run `within`. Raises EngineError where a request sits out one of them.
        """
        computed = self.engine.stats().prompt_tokens
        with self._in_the_batch(requests) as outputs:
            while min(len(output.tokens) for output in outputs) < skip:
                self.offline.step()
            before = [len(output.tokens) for output in outputs]
            seconds: list[float] = []
            with within or nullcontext():
                for _ in range(steps):
                    started = time.perf_counter()
                    self.offline.step()
                    seconds.append(time.perf_counter() - started)
            if any(
                len(output.tokens) != count + steps
                for output, count in zip(outputs, before, strict=True)
            ):
                raise EngineError("some requests had no token in a step: their blocks are short")
            stats = self.engine.stats()
            return CardTurn(
                tuple(seconds),
                self._device_seconds(steps),
                stats.blocks_owned,
                stats.prompt_tokens - computed,
            )

    def prefill(self, requests: Sequence[EngineRequest]) -> float:
        """Seconds of the steps in which all prompts are computed, each up to one token."""
        only = [
            replace(request, sampling=replace(request.sampling, max_new_tokens=1))
            for request in requests
        ]
        started = time.perf_counter()
        with self._in_the_batch(only) as outputs:
            while not all(output.is_finished for output in outputs):
                self.offline.step()
        return time.perf_counter() - started

    def wait_for(self, digests: Sequence[str]) -> None:
        """Have adapters on the device."""
        for digest in digests:
            self.offline.wait(self.engine.load(digest))

    def close(self) -> None:
        self.offline.close()

    @property
    def _graphs(self) -> Graphs | None:
        backend = self.engine.backend
        return backend.graphs if isinstance(backend, CudaBackend) else None

    @contextmanager
    def _in_the_batch(self, requests: Sequence[EngineRequest]) -> Iterator[list[RequestOutput]]:
        """The requests live; afterwards none is, whatever happened."""
        try:
            yield [self.offline.add_request(request) for request in requests]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # what the step that failed has taken is in pieces
            raise
        finally:
            self.offline.abort_requests(request.request_id for request in requests)
            self.offline.run_until_idle()

    def _device_seconds(self, steps: int) -> float | None:
        """The last step's graph run again and again; None where there are no graphs."""
        graphs = self._graphs
        if graphs is None or not torch.cuda.is_available():
            return None
        event: Any = torch.cuda.Event  # untyped in torch
        first, last = (event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(steps):
            graphs.again()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) / 1000 / steps
