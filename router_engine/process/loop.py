"""The engine's thread: takes commands between steps, runs steps, reports what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import msgspec

from adapters_store.errors import StoreError
from router_engine.calls import AnyCall, CalledEngine
from router_engine.errors import EngineError
from router_engine.events import EngineEvent
from router_engine.info import EngineInfo
from router_engine.process.messages import (
    CallFailed,
    CallRequest,
    CallResult,
    Cancel,
    Command,
    LongWork,
    Ready,
    Report,
    Shutdown,
    StartFailed,
    StepEvents,
    Submit,
    encode,
)
from router_engine.process.wire_errors import WireError
from router_engine.processes.long_work import announce_with
from router_engine.request import EngineRequest

_IDLE_SECONDS = 1.0


class SteppedEngine(CalledEngine, Protocol):
    """The part of `router_engine.engine.Engine` that the loop drives, without importing torch."""

    def add_request(self, request: EngineRequest) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> list[EngineEvent]: ...

    @property
    def has_work(self) -> bool: ...

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
        """Those that wait; with nothing to run, waits for more and checks the invariants."""
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

    def _handle(self, command: Submit | Cancel | CallRequest) -> None:
        match command:
            case Submit(request):
                self._engine.add_request(request)
            case Cancel(request_id):
                self._engine.cancel(request_id)
            case CallRequest(number, call):
                self._answer(number, call)

    def _answer(self, number: int, call: AnyCall) -> None:
        try:
            answer = call.run(self._engine)
        except (EngineError, StoreError, ValueError) as error:
            self._channel.send(CallFailed(number, WireError.of(error)))
            return
        if isinstance(answer, Future):
            answer.add_done_callback(partial(self._settle, number))
        else:
            self._reply(number, answer)

    def _settle(self, number: int, future: Future[Any]) -> None:
        self._settled.put((number, future))
        self._channel.wake()

    def _send_settled(self) -> None:
        while True:
            try:
                number, future = self._settled.get_nowait()
            except Empty:
                return
            error = future.exception()
            if error is None:
                self._reply(number, future.result())
            else:
                self._channel.send(CallFailed(number, WireError.of(error)))

    def _reply(self, number: int, value: object) -> None:
        self._channel.send(CallResult(number, msgspec.Raw(encode(value))))
