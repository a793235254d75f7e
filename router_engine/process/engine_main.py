"""The engine process: `python -m router_engine.process.engine_main`, told all on its stdin.

It lives no longer than its parent: the kernel kills it with the parent's thread where it can
(Linux), and the end of stdin ends it everywhere.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import zmq

from router_engine.errors import EngineError
from router_engine.process.gc import freeze_loaded
from router_engine.process.loop import SteppedEngine, run_engine
from router_engine.process.messages import (
    Command,
    EngineProcessConfig,
    Report,
    decode_command,
    decode_launch,
    encode,
)
from router_engine.processes.parent import die_with_parent

_STDIN = 0

_logger = logging.getLogger(__name__)


def main() -> int:
    """Run one engine; the exit status is 0 after Shutdown, 1 after a failure (logged)."""
    faulthandler.enable()
    # A terminal or a service manager signals the whole group; the parent decides when this ends.
    # A handler, not SIG_IGN, which a compiler started from here would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:
        launch = decode_launch(stdin.readline())
    _end_with_parent(launch.parent_pid)
    logging.basicConfig(
        level=launch.config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    channel = _ZmqChannel(launch.address)
    try:
        run_engine(partial(_build, launch.config), channel)
    except EngineError as error:  # its message says all, mostly
        _logger.error("the engine ends: %s", error, exc_info=_logger.isEnabledFor(logging.DEBUG))
        return 1
    except Exception:
        _logger.exception("the engine ends")
        return 1
    finally:
        channel.close()
    return 0


def _build(config: EngineProcessConfig, wake: Callable[[], None]) -> SteppedEngine:
    # Here, not above: torch takes seconds, and its failure to load must be reported like others.
    from router_engine.process.engine_factory import build_engine

    engine = build_engine(config, wake)
    freeze_loaded()
    return engine


def _end_with_parent(parent_pid: int) -> None:
    die_with_parent(parent_pid)
    threading.Thread(target=_exit_at_end_of_stdin, name="parent-watch", daemon=True).start()


def _exit_at_end_of_stdin() -> None:
    # os.read, not sys.stdin: a daemon thread that holds a buffer's lock aborts the interpreter's
    # orderly exit.
    while os.read(_STDIN, 1024):
        pass
    os._exit(1)


class _ZmqChannel:
    """A `Channel` over a ZeroMQ socket, with a pipe that wakes it from any thread."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)  # a step never waits for a slow reader
        self._socket.linger = 1000  # ms: the last report of a failing engine gets out
        self._socket.connect(address)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def wake(self) -> None:
        with suppress(BlockingIOError):  # full: a wake-up waits already
            os.write(self._wake_write, b"\0")

    def send(self, report: Report) -> None:
        self._socket.send(encode(report))

    def receive(self, timeout: float | None) -> Sequence[Command]:
        if timeout != 0:
            self._poller.poll(None if timeout is None else int(1000 * timeout))
        # Emptied before the commands are read: a later wake-up ends the next wait.
        with suppress(BlockingIOError):
            while os.read(self._wake_read, 1024):
                pass
        commands: list[Command] = []
        with suppress(zmq.Again):
            while True:
                commands.append(decode_command(self._socket.recv(zmq.NOBLOCK)))
        return commands

    def close(self) -> None:
        # The pipe stays: a loader's thread may still call `wake` while the process ends.
        self._socket.close()
        self._context.term()


if __name__ == "__main__":
    sys.exit(main())
