"""Keeps the encoder worker running: starts it, watches it on a thread, restarts it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import structlog

from router_engine.routers.encoder.config import EncoderConfig
from router_engine.routers.encoder.process import EncoderProcess
from router_engine.routers.errors import RouterUnavailableError

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5
_LONGEST_PAUSE = 30.0


class EncoderSupervisor:
    """Owns the worker's process; all blocking calls happen on its one thread."""

    def __init__(self, config: EncoderConfig) -> None:
        self._process = EncoderProcess(config)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def start(self) -> None:
        """Return when the worker is ready. Raises RouterUnavailableError if it cannot start."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(), started), name="encoder-watch"
        )
        self._thread.start()
        await started

    async def close(self) -> None:
        """Stop the worker."""
        self._closing.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self, loop: asyncio.AbstractEventLoop, started: asyncio.Future[None]) -> None:
        try:
            self._process.start()
        except RouterUnavailableError as error:
            loop.call_soon_threadsafe(_fail, started, error)
            return
        loop.call_soon_threadsafe(_succeed, started)
        pause = 1.0
        while not self._closing.is_set():
            status = self._process.wait(_LOOK_SECONDS) if self._process.alive else -1
            if status is None:
                pause = 1.0
                continue
            if self._closing.is_set():
                break
            log.warning("the encoder worker ended and is restarted", status=status)
            with suppress(RouterUnavailableError):
                self._process.restart()
                continue
            self._closing.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._process.stop()


def _succeed(started: asyncio.Future[None]) -> None:
    if not started.done():
        started.set_result(None)


def _fail(started: asyncio.Future[None], error: Exception) -> None:
    if not started.done():
        started.set_exception(error)
