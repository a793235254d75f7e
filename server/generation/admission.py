"""Says no early: a bound on the requests that wait for their first token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import QueueFullError

_SMOOTHING = 0.2  # share of the newest observation in the running mean
_LONGEST_RETRY = 60


class Admission:
    """Counts sequences from submission to their first token. Used from one event loop."""

    def __init__(self, max_waiting: int, on_refusal: Callable[[], None]) -> None:
        self.most = max_waiting
        self._on_refusal = on_refusal
        self._mean_wait = 1.0  # seconds to a first token, a running mean
        self.waiting = 0
        self.live = 0

    @contextmanager
    def enter(self, sequences: int = 1) -> Iterator[Callable[[float], None]]:
        """Hold a place a sequence; the value is to be called with the seconds to the first token.

        Raises QueueFullError when there are not as many places; one request always finds them
        where nobody waits.
        """
        places = min(sequences, self.most)
        if self.waiting + places > self.most:
            self._on_refusal()
            raise QueueFullError(self.waiting, self.retry_after)
        self.waiting += places
        self.live += 1
        is_waiting = True

        def on_first_token(seconds: float) -> None:
            nonlocal is_waiting
            if is_waiting:
                is_waiting = False
                self.waiting -= places
                self._mean_wait += _SMOOTHING * (seconds - self._mean_wait)

        try:
            yield on_first_token
        finally:
            self.live -= 1
            if is_waiting:
                self.waiting -= places

    @property
    def retry_after(self) -> int:
        """Whole seconds after which a place is likely to be free."""
        return max(1, min(_LONGEST_RETRY, math.ceil(self._mean_wait)))
