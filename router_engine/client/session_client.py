"""What both clients do alike: every call goes to the session of the engine that runs now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress

from adapters_store.types import ResolvedMixture
from router_engine.client.base import AdapterResidency, MergedState
from router_engine.client.session import EngineSession
from router_engine.errors import EngineNotReadyError, RequestRefusedError
from router_engine.events import EngineEvent, FinalEvent, FinishReason
from router_engine.request import EngineRequest
from router_engine.stats import EngineStats


class SessionClient(ABC):
    """The part of `EngineClient` that needs only a session."""

    @abstractmethod
    def _session(self) -> EngineSession:
        """The live session; raises EngineNotReadyError when there is none."""

    async def submit(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """See `EngineClient.submit`."""
        session = self._session()
        try:
            queue = session.open(request)
        except RequestRefusedError as error:
            yield FinalEvent(request.request_id, FinishReason.REFUSED, error=str(error))
            return
        event: EngineEvent | None = None
        try:
            while not isinstance(event, FinalEvent):
                event = await queue.get()
                yield event
        finally:
            if not isinstance(event, FinalEvent):
                session.abandon(request.request_id, queue)

    async def cancel(self, request_id: str) -> None:
        """See `EngineClient.cancel`."""
        with suppress(EngineNotReadyError):  # then the request has ended already
            self._session().cancel(request_id)

    async def load(self, digest: str) -> AdapterResidency:
        """See `EngineClient.load`."""
        return await self._session().load(digest)

    async def pin(self, digest: str, *, pinned: bool) -> AdapterResidency:
        """See `EngineClient.pin`."""
        return await self._session().pin(digest, pinned=pinned)

    async def unload(self, digest: str) -> int:
        """See `EngineClient.unload`."""
        return await self._session().unload(digest)

    async def residency(self) -> tuple[AdapterResidency, ...]:
        """See `EngineClient.residency`."""
        return await self._session().residency()

    async def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        """See `EngineClient.merge`."""
        return await self._session().merge(mixture)

    async def merged(self) -> MergedState:
        """See `EngineClient.merged`."""
        return await self._session().merged()

    async def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        """See `EngineClient.put_centroids`."""
        await self._session().put_centroids(router, centroids)

    async def stats(self) -> EngineStats:
        """See `EngineClient.stats`."""
        return await self._session().stats()
