"""What a backend captures before it serves: what that takes, and all of it."""

from __future__ import annotations

import logging

from router_engine.backends.base import Captures
from router_engine.memory.gauge import MemoryGauge, told_where_short
from router_engine.processes.progress import told

_SAMPLE = 8  # captures, beside the first, that tell what each takes

_log = logging.getLogger(__name__)


def measured_bytes(captures: Captures | None, gauge: MemoryGauge) -> int:
    """What all captures will take: they share what they compute with, which the first one takes."""
    if captures is None:
        return 0
    count = len(captures)
    more = min(_SAMPLE, count - 1)
    first = gauge.kept_by(lambda: captures.capture(1, _to_nobody))
    rest = gauge.kept_by(lambda: captures.capture(1 + more, _to_nobody))
    captures.clear()
    return first + rest * (count - 1) // max(more, 1)


def capture_all(captures: Captures | None) -> None:
    """Capture all. Raises EngineError, with the numbers, where the memory does not do."""
    if captures is None:
        return
    advice = "use a smaller max_running, a smaller gpu_memory_utilization, or enforce_eager"
    with told_where_short("its graphs", advice), told(_log, "Capturing graphs") as on_progress:
        captures.capture(len(captures), on_progress)


def _to_nobody(done: int, of: int) -> None:
    """Nobody is told."""
