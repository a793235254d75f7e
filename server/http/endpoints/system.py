"""Health, metrics, and what this server serves."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from router_engine.processes.supervisor import RunState
from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import Container, ContainerDep
from server.schemas.adapters import RouterList, RouterReply
from server.schemas.errors import native_errors
from server.schemas.health import HealthReply, InfoReply, LiveReply

router = APIRouter(
    route_class=StrictRoute,
    tags=["system"],
)

_INFO = {
    "version": "0.1.0",
    "model_id": "smollm2-135m-instruct",
    "architecture": "LlamaForCausalLM",
    "dtype": "bfloat16",
    "device": "cpu",
    "max_model_len": 8192,
    "vocab_size": 49152,
    "routers": ["similarity"],
    "max_candidates": 64,
    "max_waiting": 256,
    "default_timeout": None,
    "max_timeout": 3600.0,
    "default_max_new_tokens": 128,
}
_ROUTERS = {
    "routers": [
        {
            "name": "similarity",
            "summary": "Cosine between the text's embedding and each adapter's centroid.",
            "levels": ["request", "token"],
            "needs_encoder": True,
            "parameters": {"properties": {"temperature": {"type": "number", "default": 0.1}}},
        }
    ]
}
_READY = {"status": "ready", "engine": "ready"}
_NOT_READY = {"status": "not_ready", "engine": "restarting"}


def _answer(example: Any) -> dict[str, Any]:
    return {"description": "The answer", "content": {"application/json": {"example": example}}}


_HEALTH: dict[int | str, dict[str, Any]] = {
    200: _answer(_READY),
    503: _answer(_NOT_READY) | {"model": HealthReply},
}


@router.get(
    "/health/live", summary="Whether the process runs", responses={200: _answer({"status": "live"})}
)
async def live() -> LiveReply:
    """Answers as long as the process does."""
    return LiveReply()


@router.get("/health/ready", summary="Whether requests are taken", responses=_HEALTH)
async def ready(container: ContainerDep, response: Response) -> HealthReply:
    """200 when requests are taken, 503 while the engine (re)starts or the server stops."""
    return _health(container, response)


@router.get("/health", summary="The same as /health/ready", responses=_HEALTH)
async def health(container: ContainerDep, response: Response) -> HealthReply:
    """For load balancers that know one path only."""
    return _health(container, response)


def _health(container: Container, response: Response) -> HealthReply:
    state = _state(container)
    is_ready = state is RunState.READY and not container.draining.is_on
    response.status_code = 200 if is_ready else 503
    return HealthReply(status="ready" if is_ready else "not_ready", engine=state.value)


def _state(container: Container) -> RunState:
    return container.services.engine.state if container.is_started else RunState.STARTING


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {
            "description": "The exposition text",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'adaptermix_requests_total{endpoint="generate",'
                    'finish_reason="length"} 3.0\n',
                }
            },
        }
    },
)
async def metrics(container: ContainerDep) -> Response:
    """The server's own metrics, and the engine's last: a busy engine is not waited for."""
    now, engine = container.metrics.now, None
    now.http_waiting.set(container.admission.waiting)
    now.engine_ready.set(_state(container) is RunState.READY)
    for process, restarts in container.restarts.items():
        now.restarts.labels(process).set(restarts)
    if container.is_started:
        engine, age = await container.services.figures.latest()
        now.figures_age.set(age)
    page = await container.scraping.run(partial(container.metrics.render, engine))
    return Response(page, media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/info",
    summary="What this server serves",
    dependencies=[Depends(documented_key)],
    responses={200: _answer(_INFO), **native_errors(401, 403, 503)},
)
async def info(container: ContainerDep) -> InfoReply:
    """The base model, its limits, and the server's."""
    services, settings = container.services, container.settings
    engine = services.info
    return InfoReply(
        version=version("adaptermix"),
        model_id=services.base_name,
        architecture=engine.base.architecture,
        dtype=engine.dtype,
        device=engine.device,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        routers=[name for name in services.routing.registry.names if services.routing.served(name)],
        max_candidates=settings.max_candidates,
        max_waiting=settings.max_waiting,
        default_timeout=settings.default_timeout,
        max_timeout=settings.max_timeout,
        default_max_new_tokens=settings.default_max_new_tokens,
    )


@router.get(
    "/admin/routers",
    summary="List routers and their parameters",
    dependencies=[Depends(documented_key)],
    responses={200: _answer(_ROUTERS), **native_errors(401, 403, 503)},
)
async def routers(container: ContainerDep) -> RouterList:
    """Every router that is known, with the levels at which it runs on this server."""
    routing = container.services.routing
    specs = [routing.registry.get(name) for name in routing.registry.names]
    return RouterList(
        routers=[
            RouterReply(
                name=spec.name,
                summary=spec.summary,
                levels=routing.served(spec.name),
                needs_encoder=spec.needs_encoder,
                parameters=spec.json_schema(),
            )
            for spec in specs
        ]
    )
