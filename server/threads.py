"""Threads of their own for what requests need: nothing of the admin's work queues before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


class Threads:
    """Runs blocking work off the event loop."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, name)

    async def run(self, work: Callable[[], Value]) -> Value:
        """What `work` returns, or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """End the threads once they have nothing to do; nobody waits for them."""
        self._pool.shutdown(wait=False)
