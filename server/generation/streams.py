"""Streams of items that come at their own pace: joined, bounded in time, and never greedy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from server.deadline import Deadline

T = TypeVar("T")
_AT_A_TIME = 8  # tokens


async def chain_first(first: T, others: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`first`, then the items of `others`; closes `others` with itself."""
    async with aclosing(others):
        yield first
        async for item in others:
            yield item


async def yield_now_and_then(count: int) -> None:
    """Let others have the event loop: what has been waiting for long is taken without a pause."""
    if count % _AT_A_TIME == 0:
        await asyncio.sleep(0)


def limited(stream: AsyncGenerator[T, None], deadline: Deadline) -> AsyncGenerator[T, None]:
    """The items of a stream up to the deadline, if there is one.

    As with `interleaved` it runs at its own pace: who reads slowly keeps nothing but memory.
    """
    return _only(interleaved([stream], deadline))


async def _only(merged: AsyncGenerator[tuple[int, T], None]) -> AsyncGenerator[T, None]:
    async with aclosing(merged):
        async for _, item in merged:
            yield item


async def interleaved(
    streams: Sequence[AsyncGenerator[T, None]], deadline: Deadline
) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several streams as they come, each with its stream's index.

    The first error ends all of them; so does closing this one, and so does the deadline, however
    slowly this one is read. Raises RequestTimeoutError then.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with deadline.within(), aclosing(stream):
                async for item in stream:
                    queue.put_nowait((index, item))
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        live = len(tasks)
        for count in itertools.count(1):
            if not live:
                return
            await yield_now_and_then(count)
            match await queue.get():
                case None:
                    live -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
