"""The operating system's side of a child: its launch, its output, its exit."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import psutil

_STDIN, _STDOUT = 0, 1
_TAIL_LINES = 40
_LINE_BYTES = 1 << 16
LAST_WORDS_SECONDS = 1.0  # how long a dead process' output and last report may take to arrive


class ChildProcess(asyncio.SubprocessProtocol):
    """A Python module run as a process. Belongs to one asyncio loop.

    It is told one line on its stdin, which stays open while this side lives: a child that reads
    on learns there that its parent has ended. All that it prints goes to `output`, line by line.
    """

    def __init__(
        self, module: str, output: logging.Logger, on_exit: Callable[[], None] = lambda: None
    ) -> None:
        """`on_exit` is called in the loop when the process has ended."""
        self.exited = asyncio.Event()
        self._module = module
        self._output = output
        self._output_ended = asyncio.Event()
        self._on_exit = on_exit
        self._transport: asyncio.SubprocessTransport | None = None
        self._unfinished = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def start(self, environment: Mapping[str, str], document: bytes) -> None:
        """Launch it in `environment`, which is all of its own, and tell it `document`."""
        self._transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: self,
            *(sys.executable, "-m", self._module),
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
        )
        self._stdin.write(document + b"\n")

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        assert self._transport is not None
        return self._transport.get_pid()

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        return self._transport is not None and not self.exited.is_set()

    @property
    def cpu_seconds(self) -> float:
        """What it has computed so far, on all cores together; 0 once it has ended."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal that killed it; None while it runs."""
        return None if self._transport is None else self._transport.get_returncode()

    @property
    def how_it_ended(self) -> str:
        """`was killed by SIGKILL`, `exited with code 1`."""
        if self.status is not None and self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"exited with code {self.status}"

    def tail(self) -> str:
        """The end of its output, as indented lines to put behind a message."""
        return "".join(f"\n  {line}" for line in self._tail)

    def close_stdin(self) -> None:
        """Tell it that its parent has no more to say."""
        if self._transport is not None:
            self._stdin.close()

    def signal_kill(self) -> None:
        """Send SIGKILL and do not wait: `exited` says when it has ended."""
        if self._transport is not None and not self.exited.is_set():
            with suppress(ProcessLookupError):
                self._transport.kill()

    async def kill(self) -> None:
        """Kill it if it still runs, and wait for its end and the end of its output."""
        if self._transport is not None:
            self.signal_kill()
            await self.exited.wait()
            # Not without a limit: a process that it has started may hold the pipe open.
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._output_ended.wait()
            self._transport.close()

    @property
    def _stdin(self) -> asyncio.WriteTransport:
        assert self._transport is not None
        # A cast: the transports of other event loops (uvloop) are not asyncio's own classes.
        return cast(asyncio.WriteTransport, self._transport.get_pipe_transport(_STDIN))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """See `asyncio.SubprocessProtocol`."""
        # Progress bars end their lines with \r alone.
        *lines, rest = re.split(rb"[\r\n]+", self._unfinished + data)
        self._unfinished = rest[-_LINE_BYTES:]
        for line in filter(None, lines):
            text = line.decode(errors="replace")
            self._tail.append(text)
            self._output.info("%s", text)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """See `asyncio.SubprocessProtocol`."""
        if fd == _STDOUT:
            self._output_ended.set()

    def process_exited(self) -> None:
        """See `asyncio.SubprocessProtocol`."""
        self.exited.set()
        self._on_exit()


class ChildWithProcess:
    """The part of a supervised `Child` that its process answers."""

    def __init__(self, process: ChildProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        return self._process.alive

    @property
    def cpu_seconds(self) -> float:
        """What its process has computed so far, on all cores together."""
        return self._process.cpu_seconds

    def tail(self) -> str:
        """The end of its output, as indented lines to put behind a message."""
        return self._process.tail()

    async def wait(self) -> str:
        """How the process ended, when it has: `was killed by SIGKILL`, `exited with code 1`."""
        await self._process.exited.wait()
        return self._process.how_it_ended

    def signal_kill(self) -> None:
        """Send SIGKILL and do not wait: `wait` says when it has ended."""
        self._process.signal_kill()
