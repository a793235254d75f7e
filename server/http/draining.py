"""The end of a server: what runs may finish, nothing new begins, what is cut off is told so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestCancelledError
from server.http.error_replies import error_response, is_openai
from server.http.streaming import EVENTS, last_events


class Draining:
    """Whether the server is about to end, and the requests under way. For one event loop."""

    def __init__(self) -> None:
        self.is_on = False
        self.is_over = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """From now on nothing new is let in."""
        self.is_on = True

    def end(self) -> None:
        """Cut off what is still under way, whatever it waits for."""
        self.is_over = True
        for task in self._under_way:
            task.cancel()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around a request, from its headers to the last byte of its answer."""
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            yield
        finally:
            self._under_way.discard(task)
            self._changed.set()

    async def idle(self) -> None:
        """Return once no request is under way."""
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()


class LastWords:
    """ASGI middleware: a request that is cut off as the server ends has an end all the same.

    That is a 503 where no answer has begun, and the last event of a stream that has, unless that
    was sent already.
    """

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # in which a stream tells how near its end it is
        answer = _Answer(send)
        with self._draining.under_way():
            try:
                await self._app(scope, receive, answer.send)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or not self._draining.is_over:
                    raise
                task.uncancel()
                # Cancelled again, of a client that does not read: nobody hears more.
                with suppress(asyncio.CancelledError):
                    await answer.end(scope, receive)


class _Answer:
    """An answer as far as it was sent: whether it has begun, as what, and whether it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kind: str | None = None
        self._is_whole = False

    async def send(self, message: Message) -> None:
        await self._send(message)  # which waits before it writes, and not after
        if message["type"] == "http.response.start":
            self._kind = Headers(raw=message["headers"]).get("content-type", "")
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body", False)

    async def end(self, scope: Scope, receive: Receive) -> None:
        error = RequestCancelledError("the server is shutting down; send the request again")
        if self._kind is None:
            await error_response(scope, error)(scope, receive, self._send)
        elif self._kind.startswith(EVENTS) and not self._is_whole:
            body = b"".join(last_events(error, scope, openai=is_openai(scope)))
            await self._send({"type": "http.response.body", "body": body})
