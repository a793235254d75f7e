"""The seam between the server and the engine, wherever the engine runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

from router_engine.calls import EngineCall
from router_engine.events import EngineEvent
from router_engine.info import EngineInfo
from router_engine.processes.supervisor import RunState
from router_engine.request import EngineRequest

Answer = TypeVar("Answer")


class EngineClient(Protocol):
    """One engine. All methods are called from one asyncio loop."""

    @property
    def state(self) -> RunState: ...

    @property
    def restarts(self) -> int:
        """How often the engine came back after a death."""
        ...

    async def start(self) -> None:
        """Return when the engine can take requests; raises EngineError if it cannot start."""

    async def close(self) -> None:
        """End the engine; live requests get a final event (CANCELLED)."""

    async def info(self) -> EngineInfo:
        """What the engine runs; known from `start` on, also while it restarts."""
        ...

    def submit(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Token events, then one final event. Closing the generator early cancels the request.

        Nothing is sent before the first `__anext__`, which raises EngineNotReadyError when the
        engine is not ready. Events that the reader has not taken are kept, at most
        max_new_tokens + 1 of them for each request.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End a request at the next step border; unknown ids are ignored (it may have ended)."""

    async def call(self, command: EngineCall[Answer]) -> Answer:
        """What the engine answers to a call (`router_engine.calls`); raises what it raised.

        EngineNotReadyError when the engine is not ready, EngineDiedError when it died over it.
        """
        ...
