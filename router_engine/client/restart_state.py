"""The state that admins put an engine in, kept by its parent: a restarted engine gets it again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from adapters_store.errors import StoreError
from adapters_store.types import ResolvedMixture
from router_engine.calls import EngineCall, Merge, Pin
from router_engine.client.session import EngineSession
from router_engine.errors import EngineDiedError, EngineError
from router_engine.info import MergedState

_ATTEMPTS = 3

_logger = logging.getLogger(__name__)


class RestartState:
    """The pins and the merged mixture of the last engine: what `restore` puts back into the next.

    Requests and centroids are none of it: requests end with their engine, and the server sends
    centroids to each engine anew.
    """

    def __init__(self) -> None:
        self._pins: set[str] = set()
        self._mixture: ResolvedMixture | None = None
        self._deaths = 0  # engines in a row that died over it

    def record(self, command: EngineCall[object], answer: object) -> None:
        """Remember what an answered call changed."""
        match command:
            case Pin(digest, pinned):
                (self._pins.add if pinned else self._pins.discard)(digest)
            case Merge():
                assert isinstance(answer, MergedState)
                self._mixture = answer.mixture

    async def restore(self, session: EngineSession) -> None:
        """Ask a fresh engine for all of it.

        What the engine answers with an error is logged and forgotten: it serves every request
        without that, just slower. Raises EngineDiedError when the engine dies over it; after
        three such deaths in a row everything is forgotten, so that the next engine can live.
        """
        try:
            for digest in sorted(self._pins):
                if not await _applied(
                    session.call(Pin(digest, pinned=True)), f"the pin on {digest}"
                ):
                    self._pins.discard(digest)
            if self._mixture is not None and not await _applied(
                session.call(Merge(self._mixture)), f"the merged mixture {self._mixture.digest}"
            ):
                self._mixture = None
        except EngineDiedError:
            self._deaths += 1
            if self._deaths >= _ATTEMPTS:
                _logger.error("the engine keeps dying over its pins and merged mixture: forgotten")
                self._pins.clear()
                self._mixture = None
            raise
        self._deaths = 0


async def _applied(call: Awaitable[object], what: str) -> bool:
    try:
        await call
    except EngineDiedError:
        raise
    except (EngineError, StoreError) as error:
        _logger.error("%s could not be put back: %s", what, error)
        return False
    return True
