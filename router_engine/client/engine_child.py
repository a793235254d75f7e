"""One engine process from launch to exit, seen from its parent."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import zmq
import zmq.asyncio

from router_engine.calls import GetMerged
from router_engine.client.session import EngineSession
from router_engine.errors import EngineDiedError, EngineNotReadyError
from router_engine.events import FinishReason
from router_engine.info import EngineInfo
from router_engine.process.messages import (
    Command,
    EngineProcessConfig,
    Launch,
    Shutdown,
    decode_report,
    encode,
    encode_launch,
)
from router_engine.processes.child_process import (
    LAST_WORDS_SECONDS,
    ChildProcess,
    ChildWithProcess,
)
from router_engine.processes.socket_folder import socket_folder

_MODULE = "router_engine.process.engine_main"

_logger = logging.getLogger(__name__)
_output_logger = logging.getLogger("router_engine.engine_process")


class EngineChild(ChildWithProcess):
    """A running engine process and the session with it, which ends when the process does."""

    def __init__(self) -> None:
        super().__init__(ChildProcess(_MODULE, _output_logger, self._died))
        self._directory = socket_folder()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._reader: asyncio.Task[None] | None = None
        self.session = EngineSession(self._send)

    @classmethod
    async def launch(
        cls, config: EngineProcessConfig, environment: Mapping[str, str], timeout: float | None
    ) -> Self:
        """Start a process and return when it can take requests.

        `environment` is all of the child's; `timeout` in seconds. Raises what the engine failed
        with, EngineDiedError with the end of its output when it died, or did not get ready.
        """
        child = cls()
        try:
            await child._start(config, environment)
            async with asyncio.timeout(timeout):
                await child._handshake()
        except TimeoutError:
            await child.kill()
            raise EngineDiedError(
                f"the engine process was not ready within {timeout:g} s{child.tail()}"
            ) from None
        except BaseException:  # a cancelled launch must not leave a process behind either
            await child.kill()
            raise
        return child

    @property
    def info(self) -> EngineInfo:
        """What it said when it was ready."""
        return self.session.ready.result()

    @property
    def long_work(self) -> str | None:
        """What the engine has announced to be busy with for long."""
        return self.session.long_work

    async def heartbeat(self) -> None:
        """Return when the engine has answered between two steps; raises EngineError at its end."""
        await self.session.call(GetMerged())  # the cheapest question

    async def stop(self, timeout: float) -> None:
        """Ask it to end after its step, kill it after `timeout` seconds, free what it held.

        Live requests get their final event, CANCELLED, before.
        """
        self.session.end(FinishReason.CANCELLED, EngineNotReadyError("the engine was closed"))
        if self.alive:
            self._send(Shutdown())
            try:
                async with asyncio.timeout(timeout):
                    await self._process.exited.wait()
            except TimeoutError:
                _logger.warning("engine process %d did not stop in time and is killed", self.pid)
        await self.kill()

    async def kill(self) -> None:
        """Kill it if it still runs, and free what it held."""
        await self._process.kill()
        if self._reader is not None:
            self._reader.cancel()
        self._socket.close(linger=0)
        self._context.term()
        self._directory.cleanup()

    async def _start(self, config: EngineProcessConfig, environment: Mapping[str, str]) -> None:
        address = f"ipc://{Path(self._directory.name) / 'engine'}"
        self._socket.bind(address)
        launch = Launch(config, address, os.getpid())
        await self._process.start(environment, encode_launch(launch))
        self._reader = asyncio.create_task(self._read(), name="engine-reports")

    async def _handshake(self) -> None:
        ready = self.session.ready
        exited = asyncio.ensure_future(self._process.exited.wait())
        try:
            await asyncio.wait((ready, exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
        if not ready.done():  # it died, and its last words may still be on their way
            await asyncio.wait({ready}, timeout=LAST_WORDS_SECONDS)
        if not ready.done():
            raise EngineDiedError(
                f"the engine process {self._process.how_it_ended} before it was ready{self.tail()}"
            )
        await ready

    async def _read(self) -> None:
        try:
            while True:
                self.session.receive(decode_report(await self._socket.recv()))
        except Exception:  # without a reader the engine is lost to everybody
            _logger.exception("the reports of engine process %d cannot be read", self.pid)
            self.signal_kill()

    def _send(self, command: Command) -> None:
        self._socket.send(encode(command))

    def _died(self) -> None:
        if self.session.ready.done():
            how = self._process.how_it_ended
            died = EngineDiedError(f"the engine process {how}; it is being restarted")
            self.session.end(FinishReason.ENGINE_DIED, died)
