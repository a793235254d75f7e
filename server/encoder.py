"""Keeps the encoder worker running: starts it, watches it on a thread, restarts it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import structlog

from router_engine.routers.encoder.config import EncoderConfig
from router_engine.routers.encoder.process import EncoderProcess
from router_engine.routers.errors import RouterUnavailableError

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class EncoderSupervisor:
    """Owns the worker's process; all blocking calls happen on its one thread.

    Until the worker is there, what needs it waits or is told that it is away.
    """

    def __init__(self, config: EncoderConfig, prepare: Callable[[], None]) -> None:
        """`prepare` is called once, before the worker is started for the first time."""
        self._prepare = prepare
        self._process = EncoderProcess(config)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encoder-watch", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def start(self) -> None:
        """Begin to start the worker; returns at once."""
        self._thread.start()

    async def close(self) -> None:
        """Stop the worker."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        self._prepare()
        while not self._closing.is_set():
            try:
                self._process.start()
            except RouterUnavailableError as error:
                log.error("the encoder worker did not start", reason=str(error))
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            self._watch()
        self._process.stop()

    def _watch(self) -> None:
        """Return when the worker has ended, or is to end."""
        while not self._closing.is_set():
            status = self._process.wait(_LOOK_SECONDS)
            if status is not None:
                # A signal to the whole process group ends the worker first and this process next.
                if not self._closing.wait(_FIRST_PAUSE):
                    log.warning("the encoder worker ended and is restarted", status=status)
                return
