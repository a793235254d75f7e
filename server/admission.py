"""Says no early: a bound on the requests that wait for their first token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import OverloadedError

_SMOOTHING = 0.2  # share of the newest observation in the running mean
_LONGEST_RETRY = 60


class Admission:
    """Counts requests from submission to their first token. Used from one event loop."""

    def __init__(self, max_waiting: int, on_refusal: Callable[[], None]) -> None:
        self._max_waiting = max_waiting
        self._on_refusal = on_refusal
        self._mean_wait = 1.0  # seconds to a first token, a running mean
        self.waiting = 0
        self.live = 0

    @contextmanager
    def enter(self) -> Iterator[Callable[[float], None]]:
        """Hold a place; the value is to be called with the wait in seconds at the first token.

        Raises OverloadedError when every place is taken.
        """
        if self.waiting >= self._max_waiting:
            self._on_refusal()
            raise OverloadedError(self.waiting, self.retry_after)
        self.waiting += 1
        self.live += 1
        is_waiting = True

        def begun(seconds: float) -> None:
            nonlocal is_waiting
            if is_waiting:
                is_waiting = False
                self.waiting -= 1
                self._mean_wait += _SMOOTHING * (seconds - self._mean_wait)

        try:
            yield begun
        finally:
            self.live -= 1
            if is_waiting:
                self.waiting -= 1

    @property
    def retry_after(self) -> int:
        """Whole seconds after which a place is likely to be free."""
        return max(1, min(_LONGEST_RETRY, math.ceil(self._mean_wait)))
