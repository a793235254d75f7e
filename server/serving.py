"""Runs the application under uvicorn and says when it is ready."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from rich.console import Console

from adapters_store.errors import StoreError
from router_engine.errors import EngineError
from router_engine.process.gc import freeze_loaded
from server import logging as server_logging
from server.app import create_app
from server.errors import ServerError
from server.http.container import Container
from server.http.heads import heads_within
from server.printable import as_markup
from server.settings import Settings, SettingsError

_LAST_WORDS_SECONDS = 5  # for what was cut off to say so
_BACKLOG = 2048  # uvicorn's

_EXPECTED = (StoreError, EngineError, ServerError, SettingsError, OSError)


class _Server(uvicorn.Server):
    """Starts the container first, and says so once requests are taken. Its end is the process'.

    The first signal cuts a start short, or lets running requests finish; a second one ends at once.
    """

    def __init__(self, config: uvicorn.Config, container: Container, console: Console) -> None:
        super().__init__(config)
        self._container = container
        self._console = console
        self._starting: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn.Server. They come here from before there is a loop."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn.Server."""
        if self._is_stopping:
            _leave(0)
        self._container.draining.begin()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    @property
    def _is_stopping(self) -> bool:
        return self._container.draining.is_on

    def _stop(self) -> None:
        if self.started:
            self._drain = asyncio.create_task(self._finish_requests(), name="drain")
        elif self._starting is not None:
            self._starting.cancel()

    async def _finish_requests(self) -> None:
        draining = self._container.draining
        with suppress(TimeoutError):
            await asyncio.wait_for(draining.idle(), self._container.settings.drain_seconds)
        draining.end()
        with suppress(TimeoutError):
            await asyncio.wait_for(draining.idle(), _LAST_WORDS_SECONDS)
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        try:
            await super().serve(sockets)
        except SystemExit:  # how uvicorn leaves when it cannot start
            _leave(1)
        _leave(0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.create_task(self._container.start(), name="start")
        if self._is_stopping:  # since before there was a loop
            self._starting.cancel()
        # Here and not in the lifespan: an error is told in one line, not in a traceback.
        try:
            await self._starting
        except (asyncio.CancelledError, Exception) as error:
            if not self._is_stopping:  # else it is of the end that was asked for
                if not isinstance(error, _EXPECTED):
                    raise
                _print_error(self._console, error)
                raise SystemExit(1) from error
        else:
            await super().startup(sockets=sockets)
        if self._is_stopping:
            self.should_exit = True
        elif self.started:
            freeze_loaded()
            port = self.servers[0].sockets[0].getsockname()[1]
            line = ready_line(self._container, port)
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _leave(status: int) -> NoReturn:
    """End the process, and wait for none of its threads: one may wait for a database for long.

    Its children end with it.
    """
    with suppress(Exception):
        atexit._run_exitfuncs()  # temporary folders
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def run_server(settings: Settings, console: Console) -> int:
    """Serve until a signal comes, which ends the process with 0, or with 1 if it cannot start.

    Returns an exit status where it does not come so far. Raises SettingsError.
    """
    server_logging.configure(settings.log_level, settings.log_format)
    _forward_library_logs(settings.log_level)
    try:
        container = Container(settings)
        container.auth.require_safe_host()
        container.check_files()
    except (StoreError, EngineError) as error:
        _print_error(console, error)
        return 1
    try:
        listening = bound_socket(settings.host, settings.port)
    except OSError as error:
        _print_error(console, error)
        return 1
    server = _Server(config_of(container), container, console)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    console.print(
        f"AdapterMix starts: model {settings.model}, store {settings.store_dir}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    server.run(sockets=[listening])
    return 0


def config_of(container: Container) -> uvicorn.Config:
    """The configuration of uvicorn for one server."""
    settings = container.settings
    return uvicorn.Config(
        create_app(container),
        host=settings.host,
        port=settings.port,
        http=heads_within(settings.body_patience),
        log_config=None,
        access_log=False,
        timeout_keep_alive=math.ceil(settings.keep_alive),
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
    )


def bound_socket(host: str, port: int) -> socket.socket:
    """The address taken for good, before a model is loaded: who comes early waits to be let in.

    Raises OSError that names it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)  # until then another process could take it too
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError) as error:  # of a name that is none: UnicodeError
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}, port {port}: {reason}") from error
    return listener


def _print_error(console: Console, error: Exception) -> None:
    console.print(f"[red]error:[/] {as_markup(str(error))}", soft_wrap=True, highlight=False)


def server_url(host: str, port: int) -> str:
    """The URL of a server that listens on this host, as seen from its own machine."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    if ":" in host:  # an address of IPv6, perhaps with a zone
        host = f"[{host.replace('%', '%25')}]"
    return f"http://{host}:{port}"


def ready_line(container: Container, port: int) -> str:
    """The line for people: the server's URL, and a curl that works."""
    settings = container.settings
    key = "" if container.auth.is_open else ' -H "Authorization: Bearer $KEY"'
    names = [record.name for record in container.services.adapters.newest()]
    mixture = (
        f', "mixture": {{"adapters": [{{"name": "{names[0]}", "weight": 1.0}}]}}' if names else ""
    )
    body = f'{{"inputs": "Question: What is 7 times 6?\\n\\nAnswer:"{mixture}}}'
    url = server_url(settings.host, port)
    return (
        f"ready: {container.services.base_name} on {url}, adapters: {len(names)}, API: {url}/docs\n"
        f"  curl {url}/generate{key} -H 'Content-Type: application/json' -d '{body}'"
    )


class _StructlogHandler(logging.Handler):
    """Sends the standard library's records through structlog, so that all lines look alike."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            logger = structlog.get_logger(record.name)
            logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
        except Exception:  # who logs goes on
            self.handleError(record)


def _forward_library_logs(level: str) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_StructlogHandler()]
    root.setLevel(level.upper())
    for noisy in ("alembic", "uvicorn.access", "httpx", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
