"""Scheduler and residency together, as the engine runs them, around a runner without a model.

Adapters are read from a real store into a real row pool. How many others pass while a file is read
is up to the disk, so all are read before the first request, and a step waits for what is read again
because `host_bytes` left no room for it. Clients ask again as soon as they are answered,
so that there is no pause in which a request that is passed by would get its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adapters_store.blobs import open_blobs
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.config import AdapterPoolConfig, ModelConfig, SchedulerConfig
from router_engine.events import FinalEvent
from router_engine.experts.memory import HostMemory
from router_engine.experts.residency import ResidencyManager
from router_engine.experts.rows import RowPool
from router_engine.kv.block_pool import BlockPool
from router_engine.merging.merged_base import MergedBase
from router_engine.model.loader import load_model
from router_engine.request import EngineRequest
from router_engine.scheduling.integrity import check_integrity
from router_engine.scheduling.scheduler import Scheduler
from tests.router_engine.scheduling.harness import BLOCK_SIZE, MAX_MODEL_LEN, HashRunner
from tests.support.waiting import HANG_SECONDS

Ask = Callable[[str], EngineRequest]  # what a client asks next, under a name


@dataclass(slots=True)
class Wait:
    """What happened between a request's coming and its first step."""

    arrival: int
    older: int  # live requests that came before it
    passed: int = 0  # later requests that had their first step before its own
    steps: int = 0
    started: bool = False


@dataclass(slots=True)
class Simulation:
    """A scheduler, a residency manager, and what each request waited."""

    blobs: Path
    adapters: Sequence[str]
    config: SchedulerConfig
    memory_bytes: int  # for adapters
    num_blocks: int = 64
    host_bytes: int = 1 << 30
    waits: dict[str, Wait] = field(default_factory=dict)
    finals: dict[str, FinalEvent] = field(default_factory=dict)
    news: threading.Event = field(default_factory=threading.Event)
    pool: BlockPool = field(init=False)
    scheduler: Scheduler = field(init=False)
    residency: ResidencyManager = field(init=False)
    runner: HashRunner = field(default_factory=HashRunner)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks)
        self.scheduler = Scheduler(
            self.config,
            self.pool,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            prefix_cache=False,
            clock=lambda: 0.0,
        )
        loaded = load_model(ModelConfig(model="tiny-random"))
        self.residency = ResidencyManager(
            RowPool(HostMemory(self.memory_bytes), dtype=torch.float32, device=torch.device("cpu")),
            open_blobs(self.blobs),
            AdapterPoolConfig(self.memory_bytes, host_bytes=self.host_bytes),
            ModelProjections(loaded, MergedBase(ParameterWeights(loaded, {}))),
            self.news.set,
            self.config,
        )
        for digest in self.adapters:
            self.residency.host_copy(digest)

    def add(self, request: EngineRequest) -> None:
        name = request.request_id
        self.waits[name] = Wait(len(self.waits), len(self.scheduler.live))
        assert self.scheduler.add(request) is None
        adapters = request.all_adapters
        if adapters and self.residency.acquire(name, adapters):
            self.scheduler.adapters_ready(name)

    def step(self) -> list[str]:
        """One step of the engine's loop; the requests that ended with it."""
        if not self.scheduler.has_runnable and not self.residency.has_news:
            assert self.news.wait(HANG_SECONDS), "live requests, but none can run"
        self.news.clear()
        wait(self.residency._host._reading.values(), HANG_SECONDS)
        grants = self.residency.poll()
        assert not grants.failed
        for name in grants.ready:
            self.scheduler.adapters_ready(name)
        ended = [self._end(name, reason) for name, reason in grants.refused]
        plan = self.scheduler.schedule()
        if plan is not None:
            for row in plan.rows:
                self._started(row.request_id)
            for event in self.scheduler.update(plan, self.runner.run(plan)):
                if isinstance(event, FinalEvent):
                    self.finals[event.request_id] = event
                    ended.append(event.request_id)
        for request in self.scheduler.take_finished():
            self.residency.release(request.request_id)
        for name in self.scheduler.live:
            self.waits[name].steps += not self.waits[name].started
        check_integrity(self.scheduler, self.pool)
        self.residency.check_integrity(self.scheduler.live)
        return ended

    def serve(self, clients: Mapping[str, Ask], answers: int) -> None:
        """Each client asks again once it is answered, until there were so many answers."""
        for name, ask in clients.items():
            self.add(ask(f"{name} 0"))
        for count in range(1, 1 << 30):
            if len(self.finals) >= answers:
                return
            for ended in self.step():
                name = ended.split()[0]
                self.add(clients[name](f"{name} {count}"))

    def close(self) -> None:
        self.residency.close()

    def _end(self, name: str, reason: str) -> str:
        raise AssertionError(f"{name}: {reason}")

    def _started(self, name: str) -> None:
        wait = self.waits[name]
        if wait.started:
            return
        wait.started = True
        for other in self.scheduler.live:
            waiting = self.waits[other]
            waiting.passed += not waiting.started and waiting.arrival < wait.arrival
