"""POST /generate, /generate_stream and /: LoRAX's and TGI's routes, with mixtures."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response

from server.generation.generation import Generation, Update
from server.generation.streams import chain_first, limited
from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import Container, ContainerDep
from server.http.native_wire import inputs_of
from server.http.rendering import Renderer
from server.http.replies import WrittenResponse, json_of
from server.http.streaming import LastFrame, event_response, unless_disconnected
from server.schemas.errors import native_errors
from server.schemas.generate import (
    GENERATE_EXAMPLES,
    REPLY_EXAMPLE,
    GenerateAnyBody,
    GenerateBody,
    GenerateReply,
)

_LONGEST_HEADER = 4096  # characters; proxies and clients take no line that is much longer

router = APIRouter(
    route_class=StrictRoute,
    tags=["generate"],
    dependencies=[Depends(documented_key)],
)

_STREAM_TEXT = {
    "schema": {"type": "string"},
    "example": 'data: {"token": {"id": 5062, "text": " 42", "logprob": -0.3, "special": false}, '
    '"generated_text": null, "details": null}\n\n',
}
_JSON = {"application/json": {"example": REPLY_EXAMPLE}}
_EVENTS = {"text/event-stream": _STREAM_TEXT}
_ERRORS = native_errors(401, 404, 408, 413, 422, 424, 429, 503)


def _responses(content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "The answer", "content": content}, **_ERRORS}


@router.post(
    "/generate",
    summary="Generate, whole or as a stream",
    response_model=GenerateReply,
    responses=_responses(_JSON | _EVENTS),
)
async def generate(
    request: Request,
    body: Annotated[GenerateAnyBody, Body(openapi_examples=GENERATE_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """Answer a prompt under the base model, a fixed mixture or a router."""
    return await _answer(request, body, container, stream=body.stream)


@router.post(
    "/generate_stream",
    summary="Generate as server-sent events",
    response_class=Response,
    responses=_responses(_EVENTS),
)
async def generate_stream(
    request: Request,
    body: Annotated[GenerateBody, Body(openapi_examples=GENERATE_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """The same as /generate with `stream` true."""
    return await _answer(request, body, container, stream=True)


@router.post(
    "/",
    summary="Generate, as text-generation clients expect it at the root",
    response_model=list[GenerateReply],
    responses=_responses({"application/json": {"example": [REPLY_EXAMPLE]}} | _EVENTS),
)
async def generate_compat(
    request: Request,
    body: Annotated[GenerateAnyBody, Body(openapi_examples=GENERATE_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """The same as /generate; a whole answer comes in a list of one."""
    return await _answer(request, body, container, stream=body.stream, as_list=True)


async def _answer(
    request: Request,
    body: GenerateBody,
    container: Container,
    *,
    stream: bool,
    as_list: bool = False,
) -> Response:
    generation, deadline = container.generation, container.deadline(body.timeout)
    async with deadline.within():
        inputs, seed = await generation.read(partial(inputs_of, body, generation), len(body.inputs))
        prepared = await generation.prepare(inputs)
        renderer = Renderer(
            generation.tokenization, body.parameters, prepared.plan, seed, body.inputs
        )
        if stream:
            updates = limited(generation.stream(prepared), deadline)
            first = await unless_disconnected(request, anext(updates))
            return event_response(_frames(renderer, chain_first(first, updates), generation))
        completion = await unless_disconnected(request, generation.run(prepared))
    reply = await generation.write(
        lambda: _whole(renderer.reply(completion), as_list=as_list), completion.size
    )
    headers = {
        "x-prompt-tokens": str(completion.prompt_tokens),
        "x-generated-tokens": str(len(completion.pieces)),
        "x-total-tokens": str(completion.prompt_tokens + len(completion.pieces)),
    }
    labels = ",".join(prepared.plan.labels)
    if len(labels) <= _LONGEST_HEADER:
        headers["x-adapter-id"] = labels
    return WrittenResponse(reply, headers=headers)


def _whole(reply: GenerateReply, *, as_list: bool) -> bytes:
    written = json_of(reply)
    return b"[%b]" % written if as_list else written


async def _frames(
    renderer: Renderer, updates: AsyncGenerator[Update, None], generation: Generation
) -> AsyncGenerator[str, None]:
    async with aclosing(updates):
        async for update in updates:
            for frame in await generation.write(partial(_written, renderer, update), update.size):
                yield frame


def _written(renderer: Renderer, update: Update) -> list[str]:
    frames = [json_of(frame).decode() for frame in renderer.frames(update)]
    return frames if update.completion is None else [*frames[:-1], LastFrame(frames[-1])]
