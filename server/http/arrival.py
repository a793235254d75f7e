"""Bodies that arrive in time: a client that stalls doesn't keep its place for ever."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive

from server.http.error_replies import BodyTooSlowError

SLOWEST = 16 << 10  # bytes a second of who sends without a pause


def timely(receive: Receive, patience: float) -> Receive:
    """`receive`, for a body that must come in time. Raises BodyTooSlowError.

    A sender may let the server wait for `patience` seconds, and for one more with every SLOWEST
    bytes that it sends, never for more than `patience` at once. What comes behind the body, a
    client that goes away, is waited for without end.
    """
    left = patience
    is_whole = False

    async def checked() -> Message:
        nonlocal left, is_whole
        if is_whole:
            return await receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError as error:
            raise BodyTooSlowError(patience, SLOWEST) from error
        is_whole = not message.get("more_body", False)
        left -= loop.time() - began
        if left <= 0 and not is_whole:
            raise BodyTooSlowError(patience, SLOWEST)
        left = min(patience, left + len(message.get("body", b"")) / SLOWEST)
        return message

    return checked
