"""Routers as the server uses them: checked against their registry, with centroids in place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from adapters_store.types import AdapterRecord
from router_engine.routers.base import RequestRouter
from router_engine.routers.centroids import CentroidService
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.registry import RouterRegistry
from server.generation.centroids import routable
from server.schemas.mixture import RouterChoice


class RequestRouting:
    """The routers that run here; of token and layer routers, the names that the engine serves."""

    def __init__(
        self,
        registry: RouterRegistry,
        request_routers: Mapping[str, RequestRouter],
        token_routers: Sequence[str],
        layer_routers: Sequence[str],
        centroids: CentroidService | None,
        hidden: CentroidService | None = None,
        patience: float = 30.0,
    ) -> None:
        """patience: seconds that a request waits for the sentence encoder."""
        self._patience = patience
        self.registry = registry
        self.centroids = centroids
        self.hidden = hidden  # of the routers that read hidden states
        self._request_routers = request_routers
        self._token_routers = frozenset(token_routers)
        self._layer_routers = frozenset(layer_routers)

    def served(self, name: str) -> list[str]:
        """The levels at which a router runs on this server."""
        levels = {
            "request": self._request_routers,
            "token": self._token_routers,
            "layer": self._layer_routers,
        }
        return [level for level, names in levels.items() if name in names]

    def check(self, spec: RouterChoice) -> None:
        """Raises RouterInputError for an unknown router, level or parameter, and what is known."""
        router = self.registry.get(spec.name)
        router.check(spec.level, spec.params)
        if router.hidden is not None and (spec.lag > 0 or spec.context != "keep"):
            raise RouterInputError(
                f"router {spec.name!r} reads the states of the pass before: leave lag out, and set "
                "context keep"
            )
        if spec.level not in self.served(spec.name):
            reason = "it needs a sentence encoder" if router.needs_encoder else "it is not served"
            raise RouterInputError(
                f"router {spec.name!r} does not run here at level {spec.level!r}: {reason} "
                "(ADAPTERMIX_ENCODER)"
            )

    async def prepare(self, spec: RouterChoice, candidates: Sequence[AdapterRecord]) -> None:
        """See to it that every candidate can be routed to. Raises RouterError."""
        router = self.registry.get(spec.name)
        if router.needs_encoder and self.centroids is not None:
            async with self._in_time(spec):
                await self.centroids.ensure(map(routable, candidates))
        if router.hidden is not None and self.hidden is not None:
            await self.hidden.ensure(map(routable, candidates))

    def reads_hidden_states(self, spec: RouterChoice) -> bool:
        """Whether the router reads hidden states."""
        return self.registry.get(spec.name).hidden is not None

    async def weights(
        self, spec: RouterChoice, candidates: Sequence[AdapterRecord], text: str
    ) -> tuple[float, ...]:
        """One weight a candidate from the prompt. Raises RouterError."""
        router = self._request_routers[spec.name]
        async with self._in_time(spec):
            await self.prepare(spec, candidates)
            return await router.route(text, [record.digest for record in candidates], spec.params)

    @asynccontextmanager
    async def _in_time(self, spec: RouterChoice) -> AsyncIterator[None]:
        """Raises RouterUnavailableError when a sentence encoder takes longer than it may.

        One that is starting is waited for as long again, by its client.
        """
        is_encoder = self.registry.get(spec.name).needs_encoder
        if is_encoder and self.centroids is not None:
            await self.centroids.connected()
        limit = asyncio.timeout(self._patience if is_encoder else None)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise RouterUnavailableError(
                f"router {spec.name!r}: the sentence encoder gave no answer in "
                f"{self._patience:g} s (ADAPTERMIX_ROUTING_PATIENCE)"
            ) from error
