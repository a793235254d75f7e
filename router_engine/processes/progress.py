"""The progress of long work: a bar where someone looks on, lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_PAUSE = 10.0  # seconds between two lines

OnProgress = Callable[[int, int], None]
"""Called with how many of something are done, of how many."""


@contextmanager
def told(log: logging.Logger, what: str) -> Iterator[OnProgress]:
    """Call what is yielded with how many are done, of how many; how long all took is logged."""
    start = time.monotonic()
    last, total = start, 0
    with tqdm(desc=what, disable=not sys.stderr.isatty(), leave=False) as bar:

        def on_progress(done: int, of: int) -> None:
            nonlocal last, total
            total = bar.total = of
            bar.update(done - bar.n)
            now = time.monotonic()
            if bar.disable and now - last >= _PAUSE:
                last = now
                log.info("%s: %d of %d", what, done, of)

        yield on_progress
    if total:
        log.info("%s: %d in %.1f s", what, total, time.monotonic() - start)
