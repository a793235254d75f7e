"""The client's side of one engine's life: its live requests and unanswered calls."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from adapters_store.types import ResolvedMixture
from router_engine.client.base import AdapterResidency, EngineInfo, MergedState
from router_engine.errors import EngineError, EngineNotReadyError, RequestRefusedError
from router_engine.events import EngineEvent, FinalEvent, FinishReason
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
    StartFailed,
    StepEvents,
    Submit,
    Unload,
)
from router_engine.request import EngineRequest
from router_engine.stats import EngineStats

T = TypeVar("T")

_RESIDENCY = msgspec.msgpack.Decoder(AdapterResidency)
_RESIDENCIES = msgspec.msgpack.Decoder[tuple[AdapterResidency, ...]](tuple[AdapterResidency, ...])
_FREED = msgspec.msgpack.Decoder(int)
_MERGED = msgspec.msgpack.Decoder(MergedState)
_NOTHING = msgspec.msgpack.Decoder(None)
_STATS = msgspec.msgpack.Decoder(EngineStats)


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
            case CallResult(call, value):
                _resolve(self._calls.pop(call, None), value)
            case CallFailed(call, error):
                _fail(self._calls.pop(call, None), error.exception())

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

    async def load(self, digest: str) -> AdapterResidency:
        return await self._call(LoadAdapter(next(self._numbers), digest), _RESIDENCY)

    async def pin(self, digest: str, *, pinned: bool) -> AdapterResidency:
        return await self._call(Pin(next(self._numbers), digest, pinned), _RESIDENCY)

    async def unload(self, digest: str) -> int:
        return await self._call(Unload(next(self._numbers), digest), _FREED)

    async def residency(self) -> tuple[AdapterResidency, ...]:
        return await self._call(GetResidency(next(self._numbers)), _RESIDENCIES)

    async def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        return await self._call(Merge(next(self._numbers), mixture), _MERGED)

    async def merged(self) -> MergedState:
        return await self._call(GetMerged(next(self._numbers)), _MERGED)

    async def stats(self) -> EngineStats:
        return await self._call(GetStats(next(self._numbers)), _STATS)

    async def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        vectors = {digest: tuple(vector) for digest, vector in centroids.items()}
        await self._call(PutCentroids(next(self._numbers), router, vectors), _NOTHING)

    async def _call(self, command: AnyCall, decoder: msgspec.msgpack.Decoder[T]) -> T:
        self._check_open()
        waiter: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._calls[command.call] = waiter
        try:
            self._send(command)
            return decoder.decode(await waiter)
        finally:
            self._calls.pop(command.call, None)

    def _check_open(self) -> None:
        if self._ended:
            raise EngineNotReadyError("the engine is not running; try again when it is ready")


def _resolve(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[T] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
