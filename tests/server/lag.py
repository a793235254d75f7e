"""Watches what a server's event loop does in one piece, in units that no other load changes.

Where a library is called on another thread, no thread has a turn until it returns: that is watched
too, call by call.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import CLOCK_THREAD_CPUTIME_ID, clock_gettime
from types import FrameType
from typing import Any

from server.threads import Threads
from tests.server.live import Live

# What the unit is made of: Python's own work, a library's, and memory that nothing has touched yet,
# as a callback's is that reads a large body. Some 20 ms of a present core; on another, beside other
# processes, or where a host has little memory left, unit and callbacks take longer alike.
_TURNS = 110_000
_FRESH = 16 << 20
_BODY = json.dumps([{"name": f"adapter-{i}", "weight": i / 7} for i in range(2_000)])

# What lets other threads have their turn for as long as it takes, and what takes no time.
FREE = frozenset({"encode_batch", "read", "write", "execute"})
IDLE = frozenset(
    {*("isinstance", "len", "min", "next", "getattr", "append", "pop", "extend")}
    | {*("group", "end", "strip")}
)


def used() -> float:
    """CPU seconds of this thread: what others do meanwhile is not among them."""
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID)


def unit() -> float:
    """CPU seconds of a fixed piece of work, which is as much as a callback may be."""
    before = used()
    total = 0
    for number in range(_TURNS):
        total += number * number % 7
    for _ in range(4):
        json.dumps(json.loads(_BODY))
    with mmap.mmap(-1, _FRESH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Python's objects lie in small pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[:: mmap.PAGESIZE] = b"1" * (_FRESH // mmap.PAGESIZE)
    assert total
    return used() - before


@dataclass
class Watch:
    """Callbacks of the loop by the CPU seconds that they took, and the units of the same time.

    As well as the calls of libraries on the server's other threads.
    """

    seen: list[tuple[float, str]] = field(default_factory=list)
    units: list[float] = field(default_factory=list)

    def longest(self) -> tuple[float, str]:
        """The longest callback in units, and what it was."""
        longest, name = max(self.seen)
        return longest / max(self.units), name


class Calls:
    """A profiler of one thread: the CPU seconds of each call of what isn't Python.

    Where such a call calls Python, others have their turn there: its parts count one by one.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._begun: list[float] = []
        self._longest = 0.0

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            if function.__name__ not in IDLE:
                self._begun.append(used())
        elif not self._begun:
            return
        elif event == "call":
            self._note(self._begun[-1], frame, "a call of it")
        elif event == "return":
            self._begun[-1] = used()
        elif function.__name__ not in IDLE:
            begun = self._begun.pop()
            if function.__name__ not in FREE:
                self._note(begun, frame, function)

    def _note(self, begun: float, frame: FrameType, what: Any) -> None:
        taken = used() - begun
        if taken > self._longest:
            self._longest = taken
            self._watch.seen.append((taken, f"{what!r} in {frame.f_code.co_qualname}"))


@contextmanager
def watched(live: Live, monkeypatch: Any) -> Iterator[Watch]:
    """Watch the server's loop."""
    watch = Watch()
    run = asyncio.Handle._run

    async def ident() -> int:
        return threading.get_ident()

    async def measure() -> None:
        watch.units.append(unit())

    loop = live.run(ident())

    def timed(handle: asyncio.Handle) -> None:
        if threading.get_ident() != loop:
            run(handle)
            return
        before = used()
        run(handle)
        taken = used() - before
        if "measure" not in (name := repr(handle)):
            watch.seen.append((taken, name))

    work = Threads.run

    async def profiled(self: Threads, function: Callable[[], Any]) -> Any:
        def calls() -> Any:
            sys.setprofile(Calls(watch))
            try:
                return function()
            finally:
                sys.setprofile(None)

        return await work(self, calls)

    live.run(measure())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        patch.setattr(Threads, "run", profiled)
        yield watch
    live.run(measure())
