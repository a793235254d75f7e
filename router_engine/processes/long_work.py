"""Work between two steps that may take minutes: whoever watches for a hang is told before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Announce = Callable[[str | None], None]
"""Called with what begins, and with None when it has ended."""


def _to_nobody(what: str | None) -> None:
    """Nobody watches this thread."""


# Of a context, not of the process: several engines may run in one, each on a thread of its own.
_announce: ContextVar[Announce] = ContextVar("announce", default=_to_nobody)


def announce_with(announce: Announce) -> None:
    """Have the long work of this thread announced with `announce`."""
    _announce.set(announce)


@contextmanager
def long_work(what: str) -> Iterator[None]:
    """Announce `what` while the block, or the function that this decorates, runs."""
    announce = _announce.get()
    announce(what)
    try:
        yield
    finally:
        announce(None)
