"""The ASGI application over one container."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline

from server.http import error_replies
from server.http.access import AccessMiddleware
from server.http.container import Container
from server.http.draining import LastWords
from server.http.endpoints import adapters, generate, merged, score, system
from server.http.openai import endpoints as openai
from server.http.streaming import ClientGoneError
from server.logging import RequestLogMiddleware

DESCRIPTION = """One base model, loaded once, with thousands of LoRA adapters beside it. Every
request, and if it likes every token, runs under its own mixture of them, all in one batch.

Errors are `{"error", "error_type"}`; under `/v1` they have OpenAI's shape."""

DOCS = "/docs"
_CLIENT_GONE = 499


def create_app(container: Container) -> FastAPI:
    """The application; its lifespan starts the container, unless it runs already, and closes it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not container.is_started:
            await container.start()
        await asyncio.to_thread(app.openapi)  # kept by the app: nobody waits for it later
        try:
            yield
        finally:
            await container.close()

    # Its pages bring all that they load.
    app = FastAPIOffline(
        redoc_url=None,
        static_url=f"{DOCS}/assets",
        title="AdapterMix",
        version=version("adaptermix"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.container = container
    for module in (generate, score, openai, adapters, merged, system):
        app.include_router(module.router)
    error_replies.install(app)
    app.add_exception_handler(ClientGoneError, _client_gone)
    settings = container.settings
    app.add_middleware(
        AccessMiddleware,
        auth=container.auth,
        draining=container.draining,
        max_body=int(settings.max_body),
        max_upload=int(settings.max_upload),
        body_patience=settings.body_patience,
    )
    app.add_middleware(LastWords, draining=container.draining)
    app.add_middleware(RequestLogMiddleware)
    return app


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; the access log shows the status."""
    return Response(status_code=_CLIENT_GONE)
