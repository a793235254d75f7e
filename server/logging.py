"""Structured logs, and a request id that ties a client's answer to them."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.queued_stream import QueuedStream

REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/health", "/metrics")

log = structlog.get_logger("adaptermix.access")


def configure(level: str, log_format: Literal["console", "json"]) -> None:
    """Set up structlog for this process, on standard error, which is a QueuedStream from then on.

    So whatever else writes there (warnings, other libraries) neither waits nor fails either.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        renderer,
    ]
    sys.stderr = _queued(sys.stderr, processors)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _StandardError())),
    )


class _StandardError:
    """The standard error of the moment: a line of the log never fails who writes it."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _queued(stream: TextIO, processors: list[structlog.typing.Processor]) -> TextIO:
    if isinstance(stream, QueuedStream):
        return stream
    teller = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    try:
        queued = QueuedStream(stream, lambda lost: f"{teller.warning('log_lost', lines=lost)}\n")
    except (OSError, ValueError):  # in memory, where nobody waits
        return stream
    return cast(TextIO, queued)


class RequestLogMiddleware:
    """Gives every request an id (the client's own where it is safe to print) and logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent_id if _SAFE_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                self._log(scope, status, time.perf_counter() - started)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        write = log.debug if scope["path"].startswith(_QUIET) else log.info
        write(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 1),
        )
