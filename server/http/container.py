"""One server: all that answers prompts, with a door before it."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Depends, Request

from router_engine.client.base import EngineClient
from router_engine.client.process_client import ProcessEngineClient, ProcessLimits
from router_engine.process.messages import EngineProcessConfig
from server.http.auth import Auth
from server.http.draining import Draining
from server.runtime import EngineFactory, Runtime
from server.settings import Settings
from server.threads import Threads


def process_engine(config: EngineProcessConfig, settings: Settings) -> EngineClient:
    """The engine in a process of its own."""
    return ProcessEngineClient(
        config,
        environment=settings.child_environment(settings.engine_threads),
        limits=ProcessLimits(patience=settings.engine_patience),
    )


class Container(Runtime):
    """One server's parts. `start` in a lifespan, `close` when it ends."""

    def __init__(self, settings: Settings, engine_factory: EngineFactory = process_engine) -> None:
        super().__init__(settings, engine_factory)
        self.started_at = time.time()
        self.draining = Draining()
        self.auth = Auth(settings, self.store)
        self._stack.callback(self.auth.close)
        self.scraping = Threads("metrics", 1)  # who watches the server waits for nobody else
        self._stack.callback(self.scraping.close)

    async def _start(self) -> None:
        self.auth.require_safe_host()
        await super()._start()


def container_of(request: Request) -> Container:
    """The container of the app that serves this request."""
    container: Container = request.app.state.container
    return container


ContainerDep = Annotated[Container, Depends(container_of)]
