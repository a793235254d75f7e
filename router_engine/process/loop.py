"""The engine's thread: takes commands between steps, runs steps, reports what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import msgspec

from adapters_store.errors import StoreError
from adapters_store.types import ResolvedMixture
from router_engine.client.base import AdapterResidency, EngineInfo, MergedState
from router_engine.errors import EngineError
from router_engine.events import EngineEvent
from router_engine.process.messages import (
    AnyCall,
    CallFailed,
    CallResult,
    Cancel,
    Command,
    GetMerged,
    GetResidency,
    GetStats,
    LoadAdapter,
    LongWork,
    Merge,
    Pin,
    PutCentroids,
    Ready,
    Report,
    Shutdown,
    StartFailed,
    StepEvents,
    Submit,
    Unload,
    encode,
)
from router_engine.process.wire_errors import WireError
from router_engine.processes.long_work import announce_with
from router_engine.request import EngineRequest
from router_engine.stats import EngineStats

_IDLE_SECONDS = 1.0


class SteppedEngine(Protocol):
    """What the loop drives: `router_engine.engine.Engine`, without importing torch."""

    def add_request(self, request: EngineRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> list[EngineEvent]: ...

    @property
    def has_work(self) -> bool: ...

    def load(self, digest: str) -> Future[AdapterResidency]: ...

    def pin(self, digest: str, *, pinned: bool) -> Future[AdapterResidency]: ...

    def unload(self, digest: str) -> int: ...

    def residency(self) -> tuple[AdapterResidency, ...]: ...

    def merge(self, mixture: ResolvedMixture | None) -> Future[MergedState]: ...

    def merged(self) -> MergedState: ...

    def stats(self) -> EngineStats: ...

    def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None: ...

    @property
    def info(self) -> EngineInfo: ...

    def check_integrity(self) -> None: ...

    def close(self) -> None: ...


class Channel(Protocol):
    """The loop's side of the way to its client."""

    def receive(self, timeout: float | None) -> Sequence[Command]:
        """Every command that waits; none when `timeout` seconds pass (None: for ever) or on `wake`.

        It waits only while there is no command.
        """
        ...

    def send(self, report: Report) -> None:
        """Hand a report over; never waits for the client. Engine thread only."""

    def wake(self) -> None:
        """End the wait of this `receive`, or of the next. From any thread."""


EngineFactory = Callable[[Callable[[], None]], SteppedEngine]
"""Makes an engine; the argument is the `wake` that it may call from any thread."""


def run_engine(build: EngineFactory, channel: Channel) -> None:
    """Build an engine on this thread, report Ready or StartFailed, and run it until Shutdown.

    Raises what the factory, a step or the integrity check raised.
    """
    try:
        engine = build(channel.wake)
    except Exception as error:
        channel.send(StartFailed(WireError.of(error)))
        raise
    try:
        announce_with(lambda what: channel.send(LongWork(what)))
        channel.send(Ready(engine.info))
        EngineLoop(engine, channel).run()
    finally:
        engine.close()


class EngineLoop:
    """Runs one engine on the calling thread, which owns it, until Shutdown."""

    def __init__(self, engine: SteppedEngine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        # A future may be resolved on a loader's thread; only this thread may send.
        self._settled: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        self._unchecked = False  # something happened since the last integrity check

    def run(self) -> None:
        """Return on Shutdown; an exception means that the engine can no longer be trusted."""
        while True:
            for command in self._next_commands():
                if isinstance(command, Shutdown):
                    self._engine.check_integrity()
                    return
                self._unchecked = True
                self._handle(command)
            if events := self._engine.step():
                self._unchecked = True
                self._channel.send(StepEvents.of(events))
            self._send_settled()

    def _next_commands(self) -> Sequence[Command]:
        """What waits; with nothing to run, waits for more and looks after the invariants."""
        if self._engine.has_work or not self._settled.empty():
            return self._channel.receive(0.0)
        if not self._unchecked:
            return self._channel.receive(None)
        # The check takes as long as many steps: not in the gaps between one request and the next,
        # nor while a router or a loader, which wake this thread, is busy for one.
        began = time.monotonic()
        commands = self._channel.receive(_IDLE_SECONDS)
        is_idle = not commands and time.monotonic() - began >= _IDLE_SECONDS
        if is_idle and not self._engine.has_work:
            self._engine.check_integrity()
            self._unchecked = False
        return commands

    def _handle(self, command: Submit | Cancel | AnyCall) -> None:
        match command:
            case Submit(request):
                self._engine.add_request(request)
            case Cancel(request_id):
                self._engine.cancel(request_id)
            case _:
                self._answer(command)

    def _answer(self, command: AnyCall) -> None:
        try:
            result = self._run_call(command)
        except (EngineError, StoreError, ValueError) as error:
            self._channel.send(CallFailed(command.call, WireError.of(error)))
            return
        if isinstance(result, Future):
            result.add_done_callback(partial(self._settle, command.call))
        else:
            self._reply(command.call, result)

    def _run_call(self, command: AnyCall) -> object:
        engine = self._engine
        match command:
            case LoadAdapter(_, digest):
                return engine.load(digest)
            case Pin(_, digest, pinned):
                return engine.pin(digest, pinned=pinned)
            case Unload(_, digest):
                return engine.unload(digest)
            case Merge(_, mixture):
                return engine.merge(mixture)
            case GetResidency():
                return engine.residency()
            case GetMerged():
                return engine.merged()
            case GetStats():
                return engine.stats()
            case PutCentroids(_, router, centroids):
                engine.put_centroids(router, centroids)
                return None

    def _settle(self, call: int, future: Future[Any]) -> None:
        self._settled.put((call, future))
        self._channel.wake()

    def _send_settled(self) -> None:
        while True:
            try:
                call, future = self._settled.get_nowait()
            except Empty:
                return
            error = future.exception()
            if error is None:
                self._reply(call, future.result())
            else:
                self._channel.send(CallFailed(call, WireError.of(error)))

    def _reply(self, call: int, value: object) -> None:
        self._channel.send(CallResult(call, msgspec.Raw(encode(value))))
