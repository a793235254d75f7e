"""The client's side of one engine's life, and what every client does with it."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TypeVar, cast

import msgspec

from router_engine.calls import AnyCall, EngineCall, decode_answer
from router_engine.errors import EngineError, EngineNotReadyError, RequestRefusedError
from router_engine.events import EngineEvent, FinalEvent, FinishReason
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
    StartFailed,
    StepEvents,
    Submit,
)
from router_engine.request import EngineRequest

Answer = TypeVar("Answer")
Value = TypeVar("Value")


class EngineSession:
    """Talks to one engine from its first report until `end`. Belongs to one asyncio loop.

    `ready` resolves with the engine's ready report. `send` hands a command over without waiting. A
    reader that is slow costs memory, not time: its events queue up here, at most
    max_new_tokens + 1 of them for each request.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._live: dict[str, asyncio.Queue[EngineEvent]] = {}
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._numbers = itertools.count()
        self._ended = False
        self.long_work: str | None = None  # what the engine has announced
        self.ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        # A start that was given up leaves nobody who asks for its failure.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    def receive(self, report: Report) -> None:
        """Hand a report to whom it concerns; those nobody waits for any more are dropped."""
        match report:
            case Ready(info):
                _resolve(self.ready, info)
            case StartFailed(error):
                _fail(self.ready, error.exception())
            case StepEvents():
                self._hand_out(report)
            case LongWork(what):
                self.long_work = what
            case CallResult(number, value):
                _resolve(self._calls.pop(number, None), value)
            case CallFailed(number, error):
                _fail(self._calls.pop(number, None), error.exception())

    def _hand_out(self, events: StepEvents) -> None:
        for token in events.tokens:
            if queue := self._live.get(token.request_id):
                queue.put_nowait(token)
        for final in events.finals:
            if queue := self._live.pop(final.request_id, None):
                queue.put_nowait(final)

    def end(self, reason: FinishReason, error: EngineError) -> None:
        """Give every live request its final event and every call `error`; nothing works after."""
        self._ended = True
        for request_id, queue in self._live.items():
            queue.put_nowait(FinalEvent(request_id, reason, error=str(error)))
        self._live.clear()
        # A fresh exception for each: a raised one collects its raiser's traceback.
        for waiter in self._calls.values():
            _fail(waiter, type(error)(str(error)))
        _fail(self.ready, type(error)(str(error)))
        self._calls.clear()

    def cancel(self, request_id: str) -> None:
        """Ask for the end of a request; its final event still comes. Unknown ids are ignored."""
        if request_id in self._live:
            self._send(Cancel(request_id))

    def open(self, request: EngineRequest) -> asyncio.Queue[EngineEvent]:
        """Submit a request; its events come in the queue, the final one last.

        Raises RequestRefusedError when its id is in use or it holds what msgpack cannot carry,
        EngineNotReadyError after `end`.
        """
        request_id = request.request_id
        self._check_open()
        if request_id in self._live:
            raise RequestRefusedError(f"request id {request_id!r} is in use by a live request")
        try:
            self._send(Submit(request))
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestRefusedError(f"the request cannot be sent: {error}") from error
        queue = self._live[request_id] = asyncio.Queue[EngineEvent]()
        return queue

    def abandon(self, request_id: str, queue: asyncio.Queue[EngineEvent]) -> None:
        """Cancel a request whose reader has gone, unless its final event is here already.

        The id may be used again from the final event on, so it alone does not tell which is meant.
        """
        if self._live.get(request_id) is queue:
            self._send(Cancel(request_id))

    async def call(self, command: EngineCall[Answer]) -> Answer:
        """See `EngineClient.call`."""
        self._check_open()
        number = next(self._numbers)
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            # AnyCall lists all of them, for the sake of their decoder.
            self._send(CallRequest(number, cast(AnyCall, command)))
            return decode_answer(command, await answer)
        finally:
            self._calls.pop(number, None)

    def _check_open(self) -> None:
        if self._ended:
            raise EngineNotReadyError("the engine is not running; try again when it is ready")


class SessionClient(ABC):
    """The part of `EngineClient` that needs only the session of the engine that runs now."""

    @abstractmethod
    def _session(self) -> EngineSession:
        """The live session; raises EngineNotReadyError when there is none."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """See `EngineClient.submit`."""
        session = self._session()
        try:
            queue = session.open(request)
        except RequestRefusedError as error:
            yield FinalEvent(request.request_id, FinishReason.REFUSED, error=str(error))
            return
        event: EngineEvent | None = None
        try:
            while not isinstance(event, FinalEvent):
                event = await queue.get()
                yield event
        finally:
            if not isinstance(event, FinalEvent):
                session.abandon(request.request_id, queue)

    async def cancel(self, request_id: str) -> None:
        """See `EngineClient.cancel`."""
        with suppress(EngineNotReadyError):  # then the request has ended already
            self._session().cancel(request_id)

    async def call(self, command: EngineCall[Answer]) -> Answer:
        """See `EngineClient.call`."""
        return await self._session().call(command)


def _resolve(future: asyncio.Future[Value] | None, value: Value) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Value] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
