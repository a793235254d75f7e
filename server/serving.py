"""Runs the application under uvicorn and says when it is ready."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn
from rich.console import Console
from rich.markup import escape

from adapters_store.errors import StoreError
from router_engine.errors import EngineError
from router_engine.heap import keep_loaded
from server import logging as server_logging
from server.app import create_app
from server.container import Container
from server.errors import ServerError
from server.settings import Settings, SettingsError

_LAST_WORDS_SECONDS = 5  # for what was cut off to say so

_EXPECTED = (StoreError, EngineError, ServerError, SettingsError, OSError)


class _Server(uvicorn.Server):
    """Starts the container first, and says so once requests are taken.

    The first signal lets running requests finish; a second one ends at once.
    """

    def __init__(self, config: uvicorn.Config, container: Container, console: Console) -> None:
        super().__init__(config)
        self._container = container
        self._console = console
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn.Server."""
        if self._loop is None or not self.started:
            super().handle_exit(sig, frame)
        elif not self._container.draining.is_on:
            self._captured_signals.append(sig)
            self._container.draining.begin()
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self._captured_signals.append(sig)
            self.should_exit = self.force_exit = True

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._finish_requests(), name="drain")

    async def _finish_requests(self) -> None:
        idle = self._container.draining.idle
        with suppress(TimeoutError):
            await asyncio.wait_for(idle(), self._container.settings.drain_seconds)
        ending = asyncio.create_task(self._container.end_requests())
        with suppress(TimeoutError):
            await asyncio.wait_for(idle(), _LAST_WORDS_SECONDS)
        self.should_exit = True
        await ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        # Here and not in the lifespan: an error is told in one line, not in a traceback.
        try:
            await self._container.start()
        except _EXPECTED as error:
            _print_error(self._console, error)
            raise SystemExit(1) from error
        await super().startup(sockets=sockets)
        if self.started:
            keep_loaded()
            port = self.servers[0].sockets[0].getsockname()[1]
            line = ready_line(self._container, port)
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def run_server(settings: Settings, console: Console) -> int:
    """Serve until a signal comes; the exit status. Raises SettingsError."""
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
    config = uvicorn.Config(
        create_app(container),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
    )
    server = _Server(config, container, console)
    console.print(
        f"AdapterMix starts: model {settings.model}, store {settings.store_dir}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    # uvicorn ends on these by itself, then sends them again to whoever had them before: to us,
    # and a stop that was asked for is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listening])
    except SystemExit:  # how uvicorn leaves when it cannot start
        return 1
    return 0


def bound_socket(host: str, port: int) -> socket.socket:
    """The address taken, though nobody is let in yet: found out before a model is loaded.

    Raises OSError that names it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return made


def _print_error(console: Console, error: Exception) -> None:
    console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)


def ready_line(container: Container, port: int) -> str:
    """Where the server is, and a curl that works."""
    settings = container.settings
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    key = "" if container.auth.is_open else ' -H "Authorization: Bearer $KEY"'
    names = [record.name for record in container.services.catalogue.newest()]
    mixture = (
        f', "mixture": {{"adapters": [{{"name": "{names[0]}", "weight": 1.0}}]}}' if names else ""
    )
    body = f'{{"inputs": "Question: What is 7 times 6?\\n\\nAnswer:"{mixture}}}'
    url = f"http://{host}:{port}"
    return (
        f"ready: {container.services.base_name} on {url}, adapters: {len(names)}, API: {url}/docs\n"
        f"  curl {url}/generate{key} -H 'Content-Type: application/json' -d '{body}'"
    )


class _StructlogHandler(logging.Handler):
    """Sends the standard library's records through structlog, so that all lines look alike."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _forward_library_logs(level: str) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_StructlogHandler()]
    root.setLevel(level.upper())
    for noisy in ("alembic", "uvicorn.access", "httpx", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
