"""Processes that stand still for a while, as on a machine that has no turn for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def standing_still(pids: Iterable[int]) -> Iterator[None]:
    """They are stopped inside the block, and go on after it."""
    stopped = list(pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
