"""Watches what a server's event loop does in one piece, in units that no other load changes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from resource import RUSAGE_THREAD, getrusage
from typing import Any

from tests.server.live import Live

# What the unit is made of: Python's own work and a library's, as a callback's is. Some 20 ms of a
# present core; on another, or beside other processes, unit and callbacks take longer alike.
_TURNS = 130_000
_BODY = json.dumps([{"name": f"adapter-{i}", "weight": i / 7} for i in range(2_000)])


def used() -> float:
    """CPU seconds of this thread: what others do meanwhile is not among them."""
    usage = getrusage(RUSAGE_THREAD)
    return usage.ru_utime + usage.ru_stime


def unit() -> float:
    """CPU seconds of a fixed piece of work, which is as much as a callback may be."""
    before = used()
    total = 0
    for number in range(_TURNS):
        total += number * number % 7
    for _ in range(4):
        json.dumps(json.loads(_BODY))
    assert total
    return used() - before


@dataclass
class Watch:
    """Callbacks of the loop by the CPU seconds that they took, and the units of the same time."""

    seen: list[tuple[float, str]] = field(default_factory=list)
    units: list[float] = field(default_factory=list)

    def longest(self) -> tuple[float, str]:
        """The longest callback in units, and what it was."""
        longest, name = max(self.seen)
        return longest / max(self.units), name


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

    live.run(measure())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield watch
    live.run(measure())
