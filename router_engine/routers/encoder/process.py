"""Starts, stops and restarts the encoder worker's process."""

from __future__ import annotations

import selectors
import subprocess
import sys
import time

import msgspec

from router_engine.routers.encoder.config import EncoderConfig, Started, StartOrder
from router_engine.routers.errors import RouterUnavailableError

_WORKER = "router_engine.routers.encoder.worker"


class EncoderProcess:
    """Owns one worker process. Its methods block: call them off the event loop, from one thread.

    It does not watch the worker; a supervisor waits in `wait` and calls `restart`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def start(self) -> Started:
        """Launch and wait until it is ready; raises RouterUnavailableError when it is not.

        Starting a live worker again is an error.
        """
        if self.alive:
            raise RouterUnavailableError(f"the encoder worker runs already (process {self.pid})")
        self.stop()
        self._child = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(self._config.environment),
        )
        try:
            return self._await_ready(self._child)
        except BaseException:
            self.stop(timeout=0)
            raise

    def stop(self, timeout: float = 5.0) -> None:
        """End the worker; killed when it has not gone after `timeout` seconds."""
        child, self._child = self._child, None
        if child is None:
            return
        _close_pipes(child)
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def restart(self) -> Started:
        """Stop what is left and start anew; sessions and centroids are gone."""
        self.stop()
        return self.start()

    def wait(self, timeout: float | None = None) -> int | None:
        """Block until the worker ends; its exit status, or None after `timeout` seconds."""
        if self._child is None:
            return None
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def _await_ready(self, child: subprocess.Popen[bytes]) -> Started:
        order = StartOrder(
            encoder_dir=str(self._config.encoder_dir),
            tokenizer_dir=str(self._config.tokenizer_dir),
            endpoint=self._config.endpoint,
            dtype=self._config.dtype,
            num_threads=self._config.num_threads,
            max_batch=self._config.max_batch,
        )
        line = b""
        try:
            _tell(child, msgspec.json.encode(order) + b"\n")
            line = _hear_line(child, self._config.start_seconds)
        except OSError as error:
            raise RouterUnavailableError(f"the encoder worker did not start: {error}") from error
        if not line:
            raise RouterUnavailableError(
                f"the encoder worker ended before it was ready (exit status {child.wait()})"
            )
        started = msgspec.json.decode(line, type=Started)
        if started.error is not None:
            raise RouterUnavailableError(f"the encoder worker did not start: {started.error}")
        return started


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _tell(child: subprocess.Popen[bytes], line: bytes) -> None:
    if child.stdin is not None:
        child.stdin.write(line)
        child.stdin.flush()


def _hear_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line of stdout, empty when it ended; raises TimeoutError (an OSError) after `seconds`."""
    if child.stdout is None:
        return b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + seconds
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"not ready after {seconds:g} s")
    return child.stdout.readline()
