"""Standard error that nobody waits for: a log may be read slowly, or by nobody any more."""

from __future__ import annotations

import atexit
import io
import os
import select
import threading
from collections.abc import Callable
from typing import TextIO

_MAX_WRITES = 10_000  # that wait for the thread
_MAX_BYTES = 4 << 20
_LAST_SECONDS = 2.0  # for what waits as the process ends


class QueuedStream(io.TextIOBase):
    """A text stream whose `write` neither waits nor fails, for use in any thread.

    What it is given waits for a thread that writes it to the descriptor of `stream`. What cannot
    be written is lost (the reader has gone, the disk is full), and what comes while too much waits.
    How many lines these were is told in their place: `notice` makes a line of their number.
    As the process ends it stays a while for what waits.
    """

    encoding = ""
    errors = "backslashreplace"

    def __init__(self, stream: TextIO, notice: Callable[[int], str]) -> None:
        """Raises OSError where `stream` has no descriptor."""
        self.encoding = stream.encoding
        self._descriptor = os.dup(stream.fileno())  # its number stays, whoever closes that one
        self._notice = notice
        self._changed = threading.Condition()  # reentrant: signal handlers write too
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._lost = 0  # lines that came after those that wait
        self._is_idle = True
        self._is_cut = False  # the last line that was written
        threading.Thread(target=self._write_on, name="log-writer", daemon=True).start()
        atexit.register(self.finish)

    def fileno(self) -> int:
        """See io.IOBase."""
        return self._descriptor

    def isatty(self) -> bool:
        """See io.IOBase."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """See io.IOBase."""
        return True

    def write(self, text: str, /) -> int:
        """See io.TextIOBase."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            is_full = len(self._waiting) >= _MAX_WRITES or self._bytes + len(data) > _MAX_BYTES
            if is_full or self._lost:
                self._lost += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._bytes += len(data)
            self._is_idle = False
            self._changed.notify_all()
        return len(text)

    def finish(self) -> None:
        """Return once all is written, or after a short while."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle, _LAST_SECONDS)

    def _write_on(self) -> None:
        failed = 0  # lines, of which nobody has been told
        while True:
            with self._changed:
                self._is_idle = not (self._waiting or self._lost)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._lost)
                data, lost = b"".join(self._waiting), self._lost
                self._waiting, self._bytes, self._lost = [], 0, 0
            failed = self._tell(failed)
            failed += self._put(data)
            failed = self._tell(failed + lost)

    def _tell(self, lost: int) -> int:
        """Say that lines are lost; returns of how many it could not be said."""
        if lost and self._put(self._notice(lost).encode(self.encoding, self.errors)):
            return lost
        return 0

    def _put(self, data: bytes) -> int:
        """Write; returns how many lines could not be, to the end or at all."""
        left = memoryview(b"\n" + data if self._is_cut else data)
        whole = len(left)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # who shares the descriptor has made it so
                    select.select((), (self._descriptor,), ())
        except (OSError, ValueError):
            if len(left) < whole:
                self._is_cut = not data.endswith(b"\n", 0, len(data) - len(left))
            return min(bytes(left).count(b"\n"), data.count(b"\n"))
        self._is_cut = False
        return 0
