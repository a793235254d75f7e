"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.http.error_replies import describe

T = TypeVar("T")
PING_SECONDS = 15
EVENTS = "text/event-stream"
_DONE = "[DONE]"
_ENDING = "ending"  # in a request's state


class LastFrame(str):
    """The frame with which an answer is whole."""

    __slots__ = ()


class _Ending:
    """The events of a stream that are still to come once its answer, or an error, has been sent."""

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
    """The events that end the stream of a request that cannot go on. A whole answer stays so."""
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
