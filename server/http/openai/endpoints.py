"""The /v1 routes: what the `openai` client speaks, with mixtures beside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Body, Depends, Path, Request
from fastapi.responses import Response

from adapters_store.errors import AdapterNotFoundError, InvalidReferenceError
from adapters_store.types import AdapterRecord
from router_engine.excerpt import excerpt
from server.deadline import Deadline
from server.errors import InputError, UnknownModelError
from server.generation.generation import Completion, Generation, PreparedRequest, Update
from server.generation.generation_input import GenerationInput
from server.generation.streams import chain_first, interleaved
from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import Container, ContainerDep
from server.http.openai.replies import ChatWriter, CompletionWriter, Writer
from server.http.openai.wire import (
    chat_of,
    inputs_of_answers,
    prompts_of,
    read_prompt,
    reads_text,
    sampling_of,
    size_of,
    size_of_chat,
)
from server.http.replies import WrittenResponse, json_of
from server.http.streaming import LastFrame, event_response, unless_disconnected
from server.schemas.errors import openai_errors
from server.schemas.openai import (
    CHAT_EXAMPLES,
    COMPLETION_EXAMPLES,
    ChatBody,
    ChatReply,
    CommonBody,
    CompletionBody,
    CompletionReply,
    ModelCard,
    ModelList,
)

log = structlog.get_logger(__name__)
router = APIRouter(
    route_class=StrictRoute,
    prefix="/v1",
    tags=["openai"],
    dependencies=[Depends(documented_key)],
)

_ERRORS = openai_errors(401, 404, 408, 413, 422, 424, 429, 503)
_EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": "data: {...}\n\ndata: [DONE]\n\n",
    }
}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}
_COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1760000000,
    "model": "math",
    "choices": [{"index": 0, "text": " 42", "logprobs": None, "finish_reason": "stop"}],
    "usage": _USAGE,
}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "math",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "42"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}
_MODEL = {
    "id": "math",
    "object": "model",
    "created": 1760000000,
    "owned_by": "adaptermix",
    "root": "sha256:9f2c...",
    "parent": "smollm2-135m-instruct",
    "max_model_len": 2048,
}


def _responses(example: Any, *, stream: bool = True) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": example}} | (_EVENTS if stream else {})
    return {200: {"description": "The answer", "content": content}, **_ERRORS}


@router.post(
    "/completions",
    summary="Complete text",
    response_model=CompletionReply,
    responses=_responses(_COMPLETION),
)
async def completions(
    request: Request,
    body: Annotated[CompletionBody, Body(openapi_examples=COMPLETION_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """OpenAI's completions; `model` is the base or an adapter, `mixture` an extra field."""
    generation, deadline = container.generation, container.deadline(body.timeout)
    tokenization = generation.tokenization
    async with deadline.within():
        adapter = await _adapter_of(body, container)
        raw_prompts = prompts_of(body, tokenization)
        generation.require_places(len(raw_prompts) * (body.n or 1), "prompt")
        size, with_text = size_of(body.prompt), reads_text(body)
        # One after the other: others have their turn between them, and what is too long ends it.
        prompts = [
            await generation.read(
                partial(read_prompt, prompt, tokenization, with_text=with_text), size
            )
            for prompt in raw_prompts
        ]
        inputs_of_all = inputs_of_answers(
            body, prompts, sampling_of(body, body.logprobs or 0), adapter
        )
        writer = CompletionWriter(body, [text for _, text in prompts], tokenization)
        return await _answer(request, body, inputs_of_all, writer, generation, deadline)


@router.post(
    "/chat/completions",
    summary="Continue a conversation",
    response_model=ChatReply,
    responses=_responses(_CHAT),
)
async def chat_completions(
    request: Request,
    body: Annotated[ChatBody, Body(openapi_examples=CHAT_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """OpenAI's chat completions, under the base model's own chat template."""
    generation, deadline = container.generation, container.deadline(body.timeout)
    tokenization = generation.tokenization
    async with deadline.within():
        adapter = await _adapter_of(body, container)
        prompt = await generation.read(partial(chat_of, body, tokenization), size_of_chat(body))
        inputs_of_all = inputs_of_answers(
            body, [prompt], sampling_of(body, body.top_logprobs or 0), adapter
        )
        writer = ChatWriter(body, tokenization)
        return await _answer(request, body, inputs_of_all, writer, generation, deadline)


@router.get(
    "/models",
    summary="List the base model and the adapters",
    response_model=ModelList,
    responses=_responses({"object": "list", "data": [_MODEL]}, stream=False),
)
async def models(container: ContainerDep) -> Response:
    """The base model first, then the newest version of every adapter that fits it."""
    return WrittenResponse(await container.threads.run(partial(_models, container)))


@router.get(
    "/models/{model:path}",
    summary="Show one model",
    responses=_responses(_MODEL, stream=False),
)
async def model(
    model: Annotated[str, Path(examples=["math"])], container: ContainerDep
) -> ModelCard:
    """The base model, or an adapter by any reference to it."""
    services = container.services
    if model == services.base_name:
        return _base_card(container)
    record = await _record(model, container)
    return _card(model, record.digest, record.created_at, container)


async def _answer(
    request: Request,
    body: CommonBody,
    inputs_of_all: Sequence[GenerationInput],
    writer: Writer,
    generation: Generation,
    deadline: Deadline,
) -> Response:
    if body.user is not None:
        log.info("user", user=body.user)
    prepared = [await generation.prepare(inputs) for inputs in inputs_of_all]
    generation.require_places(sum(1 + len(item.plan.ensemble) for item in prepared), "prompt")
    if not body.stream:
        answers = await unless_disconnected(request, _gather(generation, prepared, deadline))
        return WrittenResponse(
            await generation.write(
                lambda: json_of(writer.reply(answers)), sum(answer.size for answer in answers)
            )
        )
    updates = interleaved([generation.stream(item) for item in prepared], deadline)
    first = await unless_disconnected(request, anext(updates))
    usage = body.stream_options is not None and body.stream_options.include_usage
    frames = _frames(writer, len(prepared), chain_first(first, updates), generation, usage=usage)
    return event_response(frames, openai=True)


async def _gather(
    generation: Generation, prepared: Sequence[PreparedRequest], deadline: Deadline
) -> list[Completion]:
    """All answers; when one fails the others are cancelled and its error is raised."""
    updates = interleaved([generation.stream(item) for item in prepared], deadline)
    done: dict[int, Completion] = {}
    async with aclosing(updates):
        async for index, update in updates:
            if update.completion is not None:
                done[index] = update.completion
    return [done[index] for index in range(len(prepared))]


async def _frames(
    writer: Writer,
    count: int,
    updates: AsyncGenerator[tuple[int, Update], None],
    generation: Generation,
    *,
    usage: bool,
) -> AsyncGenerator[str, None]:
    done: dict[int, Completion] = {}
    async with aclosing(updates):
        for chunk in writer.opening(count):
            yield chunk.model_dump_json()
        async for index, update in updates:
            if update.completion is not None:
                done[index] = update.completion
            texts = await generation.write(partial(_written, writer, index, update), update.size)
            if len(done) == count and not usage:
                texts[-1] = LastFrame(texts[-1])
            for text in texts:
                yield text
    if usage:
        usage_chunk = writer.usage([done[index] for index in sorted(done)])
        yield LastFrame(usage_chunk.model_dump_json())


def _written(writer: Writer, index: int, update: Update) -> list[str]:
    return [json_of(chunk).decode() for chunk in writer.chunks(index, update)]


async def _adapter_of(body: CommonBody, container: Container) -> str | None:
    """The adapter that `model` names; None for the base."""
    base = container.services.base_name
    if body.model == base:
        return None
    if body.mixture is not None:
        raise InputError(
            "model", excerpt(body.model), f"with mixture it must be the base, {base!r}"
        )
    record = await _record(body.model, container)
    return record.label


async def _record(name: str, container: Container) -> AdapterRecord:
    try:
        return await container.services.mixtures.record(name, "model")
    except (AdapterNotFoundError, InvalidReferenceError) as error:
        base = container.services.base_name
        raise UnknownModelError(
            f"model {excerpt(name)}: {error}; the base model is {base!r}"
        ) from error


def _models(container: Container) -> bytes:
    cards = [_base_card(container)]
    for record in container.services.adapters.newest():
        cards.append(_card(record.name, record.digest, record.created_at, container))
    return json_of(ModelList(data=cards))


def _base_card(container: Container) -> ModelCard:
    services = container.services
    return ModelCard(
        id=services.base_name,
        created=int(container.started_at),
        root=services.base_name,
        max_model_len=services.info.max_model_len,
    )


def _card(name: str, digest: str, created_at: float, container: Container) -> ModelCard:
    services = container.services
    return ModelCard(
        id=name,
        created=int(created_at),
        root=digest,
        parent=services.base_name,
        max_model_len=services.info.max_model_len,
    )
