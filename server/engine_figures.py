"""The engine's figures for a scrape, which never waits for the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from adapters_store.errors import StoreError
from router_engine.calls import GetMerged, GetResidency, GetStats
from router_engine.client.base import EngineClient
from router_engine.errors import EngineError
from server.metrics import EngineMetrics

_PATIENCE = 0.1  # seconds: an engine between two short steps answers in this time


class EngineFigures:
    """The last figures that the engine gave. Belongs to one asyncio loop."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[EngineMetrics]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: asyncio.Task[None] | None = None
        self._figures: EngineMetrics | None = None
        self._at = clock()

    async def latest(self) -> tuple[EngineMetrics | None, float]:
        """Figures and their age in seconds; new ones if they come at once. None before the first.

        One question is under way at a time, however often this is called.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._refresh(), name="engine-figures")
        await asyncio.wait({self._asked}, timeout=_PATIENCE)
        return self._figures, self._clock() - self._at

    async def close(self) -> None:
        """Forget the question that is under way."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.wait({self._asked})

    async def _refresh(self) -> None:
        with suppress(EngineError, StoreError):  # of an engine that is away: the last ones stay
            self._figures = await self._ask()
            self._at = self._clock()


async def figures_of(engine: EngineClient) -> EngineMetrics:
    """Raises EngineError while the engine is away."""
    return EngineMetrics(
        await engine.call(GetStats()),
        await engine.call(GetResidency()),
        await engine.call(GetMerged()),
    )
