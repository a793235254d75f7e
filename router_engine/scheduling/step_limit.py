"""The tokens of a step: fewer for a while after one for which the device had no memory."""

from __future__ import annotations

_SOUND = 64  # steps after which twice as many are tried again


class StepLimit:
    """What a step may hold: prefill chunks and decodes together, and so its requests, too."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sound = 0
        self.tokens = most

    @property
    def is_lowered(self) -> bool:
        return self.tokens < self._most

    def lower(self, tokens: int) -> None:
        """A step of so many tokens found no memory: half of it from now on."""
        self.tokens, self._sound = max(1, tokens // 2), 0

    def step(self) -> None:
        """Another step comes; those before it were computed, unless `lower` said otherwise."""
        if not self.is_lowered:
            return
        self._sound += 1
        if self._sound == _SOUND:
            self.tokens, self._sound = min(self._most, 2 * self.tokens), 0
