"""One engine process from launch to exit, seen from its parent."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self, cast

import zmq
import zmq.asyncio

from router_engine.client.base import EngineInfo
from router_engine.client.messages import (
    Command,
    EngineProcessConfig,
    Launch,
    Shutdown,
    decode_report,
    encode,
    encode_launch,
)
from router_engine.client.session import EngineSession
from router_engine.errors import EngineDiedError
from router_engine.events import FinishReason

_COMMAND = (sys.executable, "-m", "router_engine.client.engine_main")
_STDOUT = 1
_TAIL_LINES = 40
_LINE_BYTES = 1 << 16
_LAST_WORDS_SECONDS = 1.0  # how long a dead process' output and last report may take to arrive

_logger = logging.getLogger(__name__)
_output_logger = logging.getLogger("router_engine.engine_process")


class EngineChild:
    """A running engine process and the session with it, which ends when the process does."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="adaptermix-")  # mode 0700
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._process = _Process(self._died)
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
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def info(self) -> EngineInfo:
        """What it said when it was ready."""
        return self.session.ready.result()

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        return not self._process.exited.is_set()

    def tail(self) -> str:
        """The end of its output, as indented lines to put behind a message."""
        return self._process.tail()

    async def wait(self) -> str:
        """How the process ended, when it has: `was killed by SIGKILL`, `exited with code 1`."""
        await self._process.exited.wait()
        return self._process.how_it_ended

    async def stop(self, timeout: float) -> None:
        """Ask it to end after its step, kill it after `timeout` seconds, free what it held."""
        if self.alive:
            self._send(Shutdown())
            try:
                async with asyncio.timeout(timeout):
                    await self._process.exited.wait()
            except TimeoutError:
                _logger.warning("engine process %d did not stop in time and is killed", self.pid)
        await self.kill()

    def signal_kill(self) -> None:
        """Send SIGKILL and do not wait: `wait` says when it has ended."""
        self._process.signal_kill()

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
        await self._process.start(environment, encode_launch(launch) + b"\n")
        self._reader = asyncio.create_task(self._read(), name="engine-reports")

    async def _handshake(self) -> None:
        ready = self.session.ready
        exited = asyncio.ensure_future(self._process.exited.wait())
        try:
            await asyncio.wait((ready, exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
        if not ready.done():  # it died, and its last words may still be on their way
            await asyncio.wait({ready}, timeout=_LAST_WORDS_SECONDS)
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


class _Process(asyncio.SubprocessProtocol):
    """The operating system's side of a child: its launch, its output, its exit."""

    def __init__(self, on_exit: Callable[[], None]) -> None:
        self.exited = asyncio.Event()
        self._output_ended = asyncio.Event()
        self._on_exit = on_exit
        self._transport: asyncio.SubprocessTransport | None = None
        self._unfinished = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def start(self, environment: Mapping[str, str], document: bytes) -> None:
        """Launch it and write `document` to its stdin, which stays open while this side lives."""
        self._transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: self, *_COMMAND, stderr=asyncio.subprocess.STDOUT, env=dict(environment)
        )
        # A cast: the transports of other event loops (uvloop) are not asyncio's own classes.
        stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        stdin.write(document)

    @property
    def pid(self) -> int:
        assert self._transport is not None
        return self._transport.get_pid()

    @property
    def how_it_ended(self) -> str:
        code = None if self._transport is None else self._transport.get_returncode()
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def tail(self) -> str:
        return "".join(f"\n  {line}" for line in self._tail)

    def signal_kill(self) -> None:
        if self._transport is not None and not self.exited.is_set():
            with suppress(ProcessLookupError):
                self._transport.kill()

    async def kill(self) -> None:
        if self._transport is not None:
            self.signal_kill()
            await self.exited.wait()
            # Not without a limit: a process that it has started may hold the pipe open.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._output_ended.wait()
            self._transport.close()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        # Progress bars end their lines with \r alone.
        *lines, rest = re.split(rb"[\r\n]+", self._unfinished + data)
        self._unfinished = rest[-_LINE_BYTES:]
        for line in filter(None, lines):
            text = line.decode(errors="replace")
            self._tail.append(text)
            _output_logger.info("%s", text)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == _STDOUT:
            self._output_ended.set()

    def process_exited(self) -> None:
        self.exited.set()
        self._on_exit()
