"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.deadline import Deadline
from server.errors import describe

T = TypeVar("T")
PING_SECONDS = 15
EVENTS = "text/event-stream"
_AT_A_TIME = 8  # tokens
_DONE = "[DONE]"
_ENDING = "ending"  # in a request's state


class LastFrame(str):
    """The frame with which an answer is whole."""

    __slots__ = ()


class _Ending:
    """What of a stream is still to come, once its answer, or an error, has been sent."""

    def __init__(self) -> None:
        self.left: list[bytes] | None = None  # None before


class _Events(EventSourceResponse):
    """A stream that tells in the request's state how near its end it is."""

    def __init__(
        self, frames: AsyncIterator[str], headers: dict[str, str] | None, *, openai: bool
    ) -> None:
        self._ending = _Ending()
        events = _events(frames, self._ending, openai=openai)
        super().__init__(events, ping=PING_SECONDS, sep="\n", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""
        scope.setdefault("state", {})[_ENDING] = self._ending
        await super().__call__(scope, receive, send)


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, cancelling it when the client goes away. Raises ClientGoneError then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def event_response(
    frames: AsyncIterator[str], *, openai: bool = False, headers: dict[str, str] | None = None
) -> EventSourceResponse:
    """Stream JSON texts as `data:` frames; an error becomes a last frame of its own."""
    return _Events(frames, headers, openai=openai)


async def chain_first(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`first`, then what `rest` yields; closes `rest` with itself."""
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item


async def yield_now_and_then(count: int) -> None:
    """Let others have the event loop: what has been waiting for long is taken without a pause."""
    if count % _AT_A_TIME == 0:
        await asyncio.sleep(0)


def limited(stream: AsyncGenerator[T, None], deadline: Deadline) -> AsyncGenerator[T, None]:
    """What a stream yields until the deadline, if there is one.

    As with `merge` it runs at its own pace: who reads slowly keeps nothing but memory.
    """
    return _only(merge([stream], deadline))


async def _only(merged: AsyncGenerator[tuple[int, T], None]) -> AsyncGenerator[T, None]:
    async with aclosing(merged):
        async for _, item in merged:
            yield item


async def merge(
    streams: Sequence[AsyncGenerator[T, None]], deadline: Deadline
) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several streams as they come, each with its stream's index.

    The first error ends all of them; so does closing this one, and so does the deadline, however
    slowly this one is read. Raises RequestTimeoutError then.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with deadline.within(), aclosing(stream):
                async for item in stream:
                    queue.put_nowait((index, item))
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        live = len(tasks)
        for count in itertools.count(1):
            if not live:
                return
            await yield_now_and_then(count)
            match await queue.get():
                case None:
                    live -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(
    frames: AsyncIterator[str], ending: _Ending, *, openai: bool
) -> AsyncGenerator[bytes, None]:
    closing = _closing(openai=openai)
    try:
        async for frame in frames:
            yield _event(frame)
            # Whoever asks for the next event has sent this one.
            if isinstance(frame, LastFrame):
                ending.left = closing
    except Exception as error:  # the status line is gone: the stream itself must say so
        failed = _failed(error, openai=openai)
        if ending.left is None:
            yield failed
    ending.left = closing
    for event in closing:
        yield event
    ending.left = []


def last_events(error: Exception, scope: Scope, *, openai: bool) -> list[bytes]:
    """What ends the stream of a request that cannot go on. An answer that is whole stays so."""
    ending = scope.get("state", {}).get(_ENDING)
    if ending is not None and ending.left is not None:
        return list(ending.left)
    return [_failed(error, openai=openai), *_closing(openai=openai)]


def _failed(error: Exception, *, openai: bool) -> bytes:
    failure = describe(error)
    body = failure.openai() if openai else failure.native()
    return _event(json.dumps(body, ensure_ascii=False))


def _closing(*, openai: bool) -> list[bytes]:
    return [_event(_DONE)] if openai else []


def _event(data: str) -> bytes:
    """A server-sent event of one line, which JSON always is."""
    return b"data: %b\n\n" % data.encode()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
