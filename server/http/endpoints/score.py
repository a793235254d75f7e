"""POST /score: the log probabilities of given completions, under any mixture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import ContainerDep
from server.http.native_wire import prepared_scores, run_scores, score_reply
from server.http.replies import WrittenResponse, json_of
from server.http.streaming import unless_disconnected
from server.schemas.errors import native_errors
from server.schemas.score import (
    SCORE_EXAMPLES,
    SCORE_REPLY_EXAMPLE,
    ScoreBody,
    ScoreReply,
)

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
        prepared = await prepared_scores(body, generation)
        completions = await unless_disconnected(request, run_scores(prepared, generation))
    size = sum(completion.size for completion in completions)
    return WrittenResponse(await generation.write(lambda: json_of(score_reply(completions)), size))
