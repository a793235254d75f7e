"""POST /score: the log probabilities of given completions, under any mixture."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from router_engine.excerpt import excerpt
from router_engine.request import SamplingParams
from server.asks import GenerationInput
from server.auth import documented_key
from server.container import ContainerDep
from server.errors import InputError
from server.generation import Completion, Generation, PreparedRequest, text_size
from server.reading import StrictRoute
from server.rendering import gates_of, routing_of, uncertainty_of
from server.replies import WrittenResponse, json_of
from server.schemas.errors import native_errors
from server.schemas.score import (
    SCORE_EXAMPLES,
    SCORE_REPLY_EXAMPLE,
    Score,
    ScoreBody,
    ScoredToken,
    ScoreReply,
)
from server.streaming import unless_disconnected

router = APIRouter(
    route_class=StrictRoute,
    tags=["generate"],
    dependencies=[Depends(documented_key)],
)


@router.post(
    "/score",
    summary="Score given completions",
    response_model=ScoreReply,
    responses={
        200: {
            "description": "The scores",
            "content": {"application/json": {"example": SCORE_REPLY_EXAMPLE}},
        },
        **native_errors(401, 404, 408, 413, 422, 424, 429, 503),
    },
)
async def score(
    request: Request,
    body: Annotated[ScoreBody, Body(openapi_examples=SCORE_EXAMPLES)],
    container: ContainerDep,
) -> Response:
    """Log probabilities of completions of a prompt, token by token."""
    generation = container.generation
    async with container.deadline(body.timeout).within():
        jobs = await _prepare(body, generation)
        completions = await unless_disconnected(request, _run(jobs, generation))
    size = sum(completion.size for completion in completions)
    return WrittenResponse(await generation.write(partial(_reply, completions), size))


def _reply(completions: Sequence[Completion]) -> bytes:
    reply = ScoreReply(
        prompt_tokens=completions[0].prompt_tokens,
        scores=[_score(completion) for completion in completions],
    )
    return json_of(reply)


async def _prepare(body: ScoreBody, generation: Generation) -> list[PreparedRequest]:
    generation.require_places(len(body.completions), "completions")
    size = text_size([body.inputs, *body.completions])
    ask = await generation.read(partial(to_ask, body, generation), size)
    generation.require_fit(len(ask.prompt_ids))
    encode = generation.tokenization.encode
    given = []
    # One after the other: others have their turn between them, and what is too long ends it.
    for index, text in enumerate(body.completions):
        field = f"completions.{index}"
        read = partial(encode, text, field=field, add_special_tokens=False)
        ids = await generation.read(read, size)
        if not ids:
            raise InputError(field, excerpt(text), "has no tokens to score")
        generation.require_room(ask, len(ids))
        given.append(ids)
    jobs = await generation.prepare_scores(ask, given)
    generation.require_places(sum(1 + len(job.plan.ensemble) for job in jobs), "completions")
    return jobs


def to_ask(body: ScoreBody, generation: Generation) -> GenerationInput:
    """What the body asks for, without its completions."""
    return GenerationInput(
        prompt_ids=generation.tokenization.encode(body.inputs),
        text=body.inputs,
        sampling=SamplingParams(report_entropy=body.uncertainty),
        mixture=body.mixture,
        adapter=body.adapter,
        priority=body.priority,
        endpoint="score",
        report_gates=body.gates,
    )


async def _run(jobs: Sequence[PreparedRequest], generation: Generation) -> list[Completion]:
    """The first alone: the others find the prompt's blocks in the prefix cache."""
    first = await generation.run(jobs[0])
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(generation.run(job)) for job in jobs[1:]]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled for its sake
    return [first, *(task.result() for task in tasks)]


def _score(completion: Completion) -> Score:
    tokens = [
        ScoredToken(
            id=piece.event.token_id,
            text=piece.text,
            logprob=piece.event.logprob,
            uncertainty=uncertainty_of(piece.event),
        )
        for piece in completion.pieces
    ]
    return Score(
        logprob=sum(token.logprob for token in tokens),
        tokens=tokens,
        routing=routing_of(completion),
        gates=gates_of(completion),
    )
