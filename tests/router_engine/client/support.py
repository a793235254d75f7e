"""Reads answers from an engine client, and checks what holds for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from router_engine.client.base import EngineClient
from router_engine.events import FinalEvent
from router_engine.request import EngineRequest
from tests.support.harness import Answer

PROMPT = tuple(range(5, 25))


async def answer_to(
    client: EngineClient, request: EngineRequest, first: asyncio.Event | None = None
) -> Answer:
    """All events of a request: tokens, then exactly one final event, which is the last.

    `first` is set when the first event comes.
    """
    answer = Answer()
    async with aclosing(client.submit(request)) as events:
        async for event in events:
            if first is not None:
                first.set()
            assert event.request_id == request.request_id
            assert answer.final is None, "an event after the final one"
            if isinstance(event, FinalEvent):
                answer.final = event
            else:
                answer.tokens.append(event)
    assert answer.end is not None
    return answer


async def started(
    client: EngineClient, requests: Sequence[EngineRequest]
) -> list[asyncio.Task[Answer]]:
    """Tasks that read the answers to requests; each of them has yielded a token."""
    tasks: list[asyncio.Task[Answer]] = []
    for request in requests:
        first = asyncio.Event()
        tasks.append(asyncio.create_task(answer_to(client, request, first)))
        await first.wait()
    return tasks
