"""Processes that do nothing but take the processor from others."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from adaptermix.bench.errors import BenchmarkError

_SPIN = "print(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """So many busy loops run during the block, by their process ids; they end with it."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", _SPIN]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchmarkError("a busy loop did not start")
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
