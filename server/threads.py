"""Threads of their own for what requests need: nothing of the admin's work queues before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from adapters_store.errors import StoreUnavailableError

Value = TypeVar("Value")


class Threads:
    """Runs blocking work off the event loop."""

    def __init__(self, name: str, count: int, patience: float | None = None) -> None:
        """patience: seconds that an answer is waited for, of threads that ask the store."""
        self._pool = ThreadPoolExecutor(count, name)
        self._patience = patience

    async def run(self, work: Callable[[], Value]) -> Value:
        """The result of `work`, or its error; StoreUnavailableError when it takes too long."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            await asyncio.wait({future}, timeout=self._patience)
            if future.done():
                return future.result()
        finally:
            future.cancel()
        raise StoreUnavailableError(f"the store gave no answer in {self._patience:g} s")

    def close(self) -> None:
        """End the threads once they have nothing to do; nobody waits for them."""
        self._pool.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class BodyThreads:
    """Threads for bodies: who waits for an answer does not wait for long bodies of others."""

    reading: Threads  # bodies of requests
    writing: Threads  # answers
