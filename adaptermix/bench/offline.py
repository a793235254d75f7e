"""Measurements of the engine in this process, without HTTP: whole requests, or single steps."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round, Sample
from adaptermix.bench.subject import Subject, device_room
from adaptermix.bench.workload import CaseMixture, Job
from adapters_store.types import AdapterRecord, ResolvedMixture
from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    KernelConfig,
    Kernels,
    ModelConfig,
    Quantization,
    SchedulerConfig,
)
from router_engine.engine import Engine
from router_engine.events import EngineEvent, FinalEvent, FinishReason, TokenEvent
from router_engine.offline import OfflineEngine, RequestOutput
from router_engine.process.gc import freeze_loaded
from router_engine.request import EngineRequest, SamplingSpec, TokenRouting

_BLOCK = 16  # tokens
_UNCOUNTED = 2  # steps after the last prompt


@dataclass(frozen=True, slots=True)
class Sizes:
    """The most that an engine holds at once."""

    requests: int  # that run
    tokens: int  # of the KV cache


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine, in seconds; `model` is the forward pass with sampling."""

    seconds: float
    model: float
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of decoding; a step of it is one token of every request.

    Seconds are those of one step; `model` is the forward pass with sampling. weights: of each
    request's last token, where the request reports them.
    """

    seconds: float
    model: float
    steps: float
    weights: Mapping[str, tuple[float, ...]]


@dataclass(slots=True)
class _Live:
    job: Job
    prompt_tokens: int
    sent: float
    arrivals: list[float] = field(default_factory=list)


class Offline:
    """An engine with adapters. A `System` for closed loops; `steps` are those of the last round."""

    def __init__(
        self,
        engine: OfflineEngine,
        subject: Subject,
        records: Mapping[str, AdapterRecord],
    ) -> None:
        self.steps: list[Step] = []
        self._offline = engine
        self._subject = subject
        self._records = records
        self._ids = itertools.count()

    @property
    def engine(self) -> Engine:
        return self._offline.engine

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the adapters, in the order of their folders."""
        return tuple(record.digest for record in self._records.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes that every step reads: all parameters, a tied embedding once."""
        return sum(parameter.nbytes for parameter in self.engine.model.parameters())

    @property
    def element_bytes(self) -> int:
        return int(next(self.engine.model.parameters()).element_size())

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        config = self.engine.model.config
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * self.element_bytes)

    def adapter_bytes(self, names: Sequence[str]) -> int:
        """Bytes of A and B of different adapters."""
        base = self.engine.base
        experts = [each for name in set(names) for each in self._records[name].manifest.experts]
        numbers = sum(expert.rows * sum(expert.row_widths(base)[:2]) for expert in experts)
        return numbers * self.element_bytes

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """See `System`. Raises BenchmarkError for an open loop."""
        if load.clients is None:
            raise BenchmarkError("the engine without HTTP takes closed loops only: no --rate")
        if case != "merged":
            return self._round(jobs, load.clients, on_done)
        merged = self._resolved(jobs[0].mixture)
        self._offline.wait(self.engine.merge(merged))
        try:
            return self._round(jobs, load.clients, on_done)
        finally:
            self._offline.wait(self.engine.merge(None))

    def decode_steps(self, jobs: Sequence[Job], count: int) -> list[Step]:
        """`count` consecutive decode steps with all jobs in the batch, their prompts not counted.

        Jobs with equal prompts from turn to turn find their KV in the prefix cache.
        """
        length = count + _UNCOUNTED + len(jobs) + 16  # none ends before the last is timed
        requests = [self._request(job, length) for job in jobs]
        steps: list[Step] = []
        with self._for_now(requests):
            for _ in range(count):
                self._step(steps)
        return steps

    def window(
        self,
        requests: Sequence[EngineRequest],
        steps: int,
        most_seconds: float,
        within: AbstractContextManager[object] | None = None,
    ) -> Window:
        """Decode all requests together until `steps` tokens of each, on average, have come.

        Those that wait for their router sit out steps of the engine, so tokens are counted, not
        steps. Prompts and the first tokens are not. Past `most_seconds` two of each are enough.
        Requests must be long enough not to end meanwhile. The counted part runs `within`.
        """
        weights: dict[str, tuple[float, ...]] = {}
        with self._for_now(requests), within or nullcontext():
            model = self.engine.stats().step_seconds
            tokens, seconds, started = 0, 0.0, time.perf_counter()
            while tokens < len(requests) * (steps if seconds < most_seconds else min(2, steps)):
                for event in _tokens(self._offline.step()):
                    tokens += 1
                    weights[event.request_id] = event.weights
                seconds = time.perf_counter() - started
            model = self.engine.stats().step_seconds - model
        passed = tokens / len(requests)
        return Window(seconds / passed, model / passed, passed, weights)

    def run(self, requests: Sequence[EngineRequest]) -> dict[str, RequestOutput]:
        """All requests to their full length, by id."""
        outputs = self._offline.generate(requests)
        for output in outputs:
            _require_length(output.end)
        return {output.end.request_id: output for output in outputs}

    def load(self) -> None:
        """Bring every adapter to the device."""
        for digest in self.digests:
            self._offline.wait(self.engine.load(digest))

    @contextmanager
    def _for_now(self, requests: Sequence[EngineRequest]) -> Iterator[None]:
        """With all requests in the batch, each with its first tokens; they are abandoned after."""
        counts = {request.request_id: 0 for request in requests}
        try:
            for request in requests:
                self._offline.add_request(request)
            while min(counts.values()) <= _UNCOUNTED:
                for event in _tokens(self._offline.step()):
                    counts[event.request_id] += 1
            yield
        finally:
            self._abandon(counts)

    def _abandon(self, request_ids: Iterable[str]) -> None:
        self._offline.abort_requests(request_ids)
        self._offline.run_until_idle()

    def _round(self, jobs: Sequence[Job], clients: int, on_done: OnDone) -> Round:
        # Tokenized before: in the server it does not hold up a step either.
        waiting = deque((job, self._request(job, job.max_new_tokens)) for job in jobs)
        live: dict[str, _Live] = {}
        samples: list[Sample] = []
        self.steps = []
        started = time.perf_counter()
        try:
            while waiting or live:
                while waiting and len(live) < clients:
                    job, request = waiting.popleft()
                    length = len(request.prompt_token_ids)
                    live[request.request_id] = _Live(job, length, time.perf_counter())
                    self._offline.add_request(request)
                events = self._step(self.steps)
                now = time.perf_counter()
                for event in events:
                    if isinstance(event, TokenEvent):
                        live[event.request_id].arrivals.append(now)
                    else:
                        samples.append(_sample(live.pop(event.request_id), event, now))
                        on_done()
        finally:
            self._abandon(live)  # of a round that failed: the next begins without them
        return Round(tuple(samples), time.perf_counter() - started)

    def _step(self, steps: list[Step]) -> list[EngineEvent]:
        """One step, once there is something to do; timed where the engine has made one."""
        self._offline.wait_for_work()
        before = self.engine.stats()
        started = time.perf_counter()
        events = self._offline.step_now()
        seconds = time.perf_counter() - started
        after = self.engine.stats()
        if after.steps > before.steps:
            steps.append(
                Step(
                    seconds,
                    after.step_seconds - before.step_seconds,
                    after.prompt_tokens - before.prompt_tokens,
                    after.generated_tokens - before.generated_tokens,
                )
            )
        return events

    def _request(self, job: Job, max_new_tokens: int) -> EngineRequest:
        tokens = tuple(self._subject.tokenizer.encode(job.prompt))
        sampling = SamplingSpec(max_new_tokens=max_new_tokens)
        mixture, request_id = job.mixture, str(next(self._ids))
        resolved = self._resolved(mixture)
        if mixture.router is None:
            return EngineRequest.from_mixture(resolved, request_id, tokens, sampling)
        if mixture.router != "given":
            raise BenchmarkError(f"router {mixture.router} reads text: use `bench serve`")
        rows = tuple(mixture.rows[i % len(mixture.rows)] for i in range(max_new_tokens))
        routing = TokenRouting("given", {"weights": rows}, mixture.every)
        return EngineRequest(
            request_id, tokens, sampling, adapters=resolved.digests, routing=routing
        )

    def _resolved(self, mixture: CaseMixture) -> ResolvedMixture:
        digests = tuple(self._records[name].digest for name in mixture.adapters)
        return ResolvedMixture(digests, mixture.weights)


@contextmanager
def offline(
    subject: Subject,
    folders: Sequence[Path],
    sizes: Sizes,
    store: Path,
    *,
    dtype: str = "auto",
    kernels: Kernels = "reference",
    quantization: Quantization = "none",
    encoder: str | None = None,
) -> Iterator[Offline]:
    """An engine with the adapters of these folders, under the folders' names.

    `encoder` is the endpoint of a sentence encoder's worker, for routers that read text.
    """
    blocks = -(-sizes.tokens // _BLOCK) + 2 * sizes.requests
    config = EngineConfig(
        model=ModelConfig(subject.model, dtype=_dtype(dtype), quantization=quantization),
        cache=CacheConfig(block_size=_BLOCK, num_blocks=blocks),
        scheduler=SchedulerConfig(max_running=max(8, sizes.requests)),
        adapters=AdapterPoolConfig(memory_bytes=device_room(folders)),
        kernels=KernelConfig(kernels),
    )
    engine = OfflineEngine.open(config, store, encoder_endpoint=encoder)
    try:
        base = engine.engine.base
        records = {path.name: engine.store.publish(path.name, path, base=base) for path in folders}
        freeze_loaded()  # as the engine's process does
        yield Offline(engine, subject, records)
    finally:
        gc.unfreeze()  # another engine may follow, and this one must go
        engine.close()


def split(steps: Sequence[Step]) -> dict[str, float]:
    """Milliseconds of the median decode step: in the model (with sampling), and around it."""
    decodes = [step for step in steps if step.prompt_tokens == 0] or list(steps)
    return {
        "step_ms": 1e3 * statistics.median(step.seconds for step in decodes),
        "model_ms": 1e3 * statistics.median(step.model for step in decodes),
        "around_ms": 1e3 * statistics.median(step.seconds - step.model for step in decodes),
    }


def _tokens(events: Sequence[EngineEvent]) -> Iterator[TokenEvent]:
    """The events, where no request may end."""
    for event in events:
        if isinstance(event, FinalEvent):
            raise BenchmarkError(f"a request ended early: {event.error or event.reason}")
        yield event


def _require_length(event: FinalEvent) -> None:
    if event.reason is not FinishReason.LENGTH:
        raise BenchmarkError(f"a request ended: {event.error or event.reason}")


def _sample(live: _Live, event: FinalEvent, now: float) -> Sample:
    _require_length(event)
    count = len(live.arrivals)
    return Sample(live.sent, tuple(live.arrivals), now, live.prompt_tokens, count)


def _dtype(name: str) -> Any:
    formats = ("auto", "float32", "bfloat16", "float16")
    if name not in formats:
        raise BenchmarkError(f"dtype is {name!r}; it must be one of {', '.join(formats)}")
    return name
