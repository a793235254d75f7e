"""Heads of requests: bounded in bytes, in lines and in time, before there is a request to look at.

The parser of HTTP has no bounds of its own, and nobody needs a key to send it a head.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import HeadTooSlowError, MalformedRequestError, OversizedHeadError
from server.http.error_replies import error_response

MOST_HEAD = 32 << 10  # bytes of a request line with its headers, and of what follows a body
MOST_LINES = 100  # headers of a request, and trailers of its body
_SLICE = 8 << 10  # bytes that are parsed before they are counted
_LINGER = 2.0  # seconds in which what still comes is dropped, so that the answer arrives


class BoundedHeads(HttpToolsProtocol):
    """One connection. What it refuses is answered in the API's shape, and is its end.

    `patience` is in seconds: from the connection, or from the first byte after an answer, to the
    end of a head. Trailers are counted, and told to nobody: the door has decided before they came.
    """

    patience: float
    url = b""

    _size = 0  # bytes since the last that was of a body, or ended a head
    _lines = 0
    _is_in_head = False
    _is_refused = False
    _problem: Exception | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._timer is None and not self._is_answering:
            self._wait()
        at = 0
        while at < len(data) and not self._is_over:
            piece = data[at : at + min(_SLICE, MOST_HEAD + 1 - self._size)]
            at += len(piece)
            self._size += len(piece)
            super().data_received(piece)
            if self._size > MOST_HEAD:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """See httptools."""
        self._size = self._lines = 0
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Raises OversizedHeadError, at which the parser gives up."""
        self._lines += 1
        if self._lines > MOST_LINES:
            raise self._kept_problem(OversizedHeadError("headers", str(MOST_LINES)))
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools. Raises OversizedHeadError."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            raise self._kept_problem(_too_large())
        self._end_wait()
        self._size = self._lines = 0
        self._is_in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._size = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """See HttpToolsProtocol, which calls this for what its parser refuses."""
        self._refuse(self._problem or MalformedRequestError(msg))

    def _kept_problem(self, problem: Exception) -> Exception:
        """The problem, kept for the reply: the parser says no more than that a callback failed."""
        self._problem = problem
        return problem

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_over(self) -> bool:
        is_another = self.transport.get_protocol() is not self  # a WebSocket's
        return self._is_refused or is_another or self.transport.is_closing()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.patience, self._give_up)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._is_in_head:
            self._refuse(HeadTooSlowError(self.patience))
        else:
            self.transport.close()

    def _refuse(self, error: Exception) -> None:
        if self._is_over:
            return
        self._end_wait()
        self._is_refused = True
        if self._is_answering:
            # What is written now is read as the answer to what is under way, or as a part of it.
            is_anothers = self._is_in_head or self.cycle.response_started or bool(self.pipeline)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if is_anothers:
                self.transport.close()
                return
        response = error_response({"path": self.url.decode("latin-1")}, error)
        headers = [*self.server_state.default_headers, *response.raw_headers]
        lines = [b"%s: %s\r\n" % pair for pair in [*headers, (b"connection", b"close")]]
        head = b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n"])
        self.transport.write(head + response.body)
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER, self.transport.close)


def _too_large() -> OversizedHeadError:
    return OversizedHeadError("the head of the request", f"{MOST_HEAD} bytes")


def heads_within(seconds: float) -> type[BoundedHeads]:
    """The protocol of connections on which a head is whole after so many seconds."""

    class Heads(BoundedHeads):
        patience = seconds

    return Heads
