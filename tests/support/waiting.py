"""How long a test waits for what always comes: a limit for a hang, and no measure of speed."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_SECONDS = 600.0  # no machine is so slow
_PAUSE = 0.02


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it holds, of what another process does and does not tell."""
    for _ in range(int(HANG_SECONDS / _PAUSE)):
        if condition():
            return
        time.sleep(_PAUSE)
    raise AssertionError("it never came")
