"""How a server ends: what runs may finish, and nothing new begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Draining:
    """Whether the server is about to end, and the requests under way. For one event loop."""

    def __init__(self) -> None:
        self.is_on = False
        self._under_way = 0
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """From now on nothing new is let in."""
        self.is_on = True

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around a request, from its headers to the last byte of its answer."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._changed.set()

    async def idle(self) -> None:
        """Return once no request is under way."""
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()
