"""Asks one question, whole, as a stream, slowly or cut off, and says in which way it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
import msgspec

from adaptermix.bench.soak.answers import MalformedError, Told, error_of, read_stream, read_whole
from adaptermix.bench.soak.questions import SoakRequest

Manner = Literal["whole", "stream", "slow", "cancel", "leave", "hurry"]
_SLOW_SECONDS = 0.1  # between two events, of a client that reads slowly
_HURRY_SECONDS = 0.5  # that one in a hurry gives a server
_LONGEST_PAUSE = 2.0  # however long a server asks to wait


@dataclass(frozen=True, slots=True)
class Ended:
    """One end of one request; exactly one of `told`, `error`, `lost` and `left` is set."""

    seconds: float
    told: Told | None = None
    status: int | None = None  # of an answer, or of an error before any event
    error: str | None = None  # its documented kind
    lost: str | None = None  # why nobody can know what became of it
    left: bool = False  # the client itself went away
    pause: float = 0.0  # how long the server asks to wait
    hurried: bool = False  # the request had a short `timeout`


async def ask(
    http: aiohttp.ClientSession,
    question: SoakRequest,
    body: Mapping[str, Any],
    manner: Manner,
    bound: float,
) -> Ended:
    """Never raises for what a server does; `bound` in seconds."""
    began = time.perf_counter()

    def after(**found: Any) -> Ended:
        return Ended(time.perf_counter() - began, hurried=manner == "hurry", **found)

    try:
        async with asyncio.timeout(bound):
            return after(**await _ask(http, question, body, manner))
    except TimeoutError:
        return after(lost=f"no end within {bound:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return after(lost=f"the connection broke: {type(error).__name__} {error}")
    except (MalformedError, msgspec.DecodeError) as error:
        return after(lost=f"malformed: {error}")


async def _ask(
    http: aiohttp.ClientSession, question: SoakRequest, body: Mapping[str, Any], manner: Manner
) -> dict[str, Any]:
    """The fields of `Ended`."""
    if manner == "leave":
        return await _leave(http, question, body)
    whole = manner in ("whole", "hurry") or not question.streams
    asked = dict(body) | ({} if whole else _STREAM) | (_HURRY if manner == "hurry" else {})
    async with http.post(question.route, json=asked) as response:
        if response.status != HTTPStatus.OK:
            kind = error_of(msgspec.json.decode(await response.read()))
            pause = min(float(response.headers.get("Retry-After", 0)), _LONGEST_PAUSE)
            return {"status": response.status, "error": kind, "pause": pause}
        if whole:
            told = read_whole(question.route, msgspec.json.decode(await response.read()))
            return {"status": response.status, "told": told}
        return await _follow(question, response, manner)


async def _leave(
    http: aiohttp.ClientSession, question: SoakRequest, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Go away while the answer is made, most likely before its first token."""
    request = asyncio.ensure_future(http.post(question.route, json=dict(body)))
    done, _ = await asyncio.wait({request}, timeout=_SLOW_SECONDS)
    if not done:
        request.cancel()
        await asyncio.wait({request})
    if not request.cancelled() and request.exception() is None:
        request.result().close()
    return {"left": True}


async def _follow(
    question: SoakRequest, response: aiohttp.ClientResponse, manner: Manner
) -> dict[str, Any]:
    frames: list[Any] = []
    async with aclosing(_frames(response)) as events:
        async for frame in events:
            frames.append(frame)
            if manner == "cancel" and len(frames) > 1:
                response.close()
                return {"left": True}
            if manner == "slow":
                await asyncio.sleep(_SLOW_SECONDS)
    failed = [frame for frame in frames if isinstance(frame, dict) and "error" in frame]
    if failed:
        _check_failure(frames, failed)
        return {"error": error_of(failed[0])}
    return {"status": HTTPStatus.OK.value, "told": read_stream(question.route, frames)}


def _check_failure(frames: list[Any], failed: list[Any]) -> None:
    ending = [frame for frame in frames if frame is not None]
    if len(failed) != 1 or ending[-1] is not failed[0]:
        raise MalformedError("an error that is not the one last event")


async def _frames(response: aiohttp.ClientResponse) -> AsyncGenerator[Any, None]:
    """The JSON of each event; None for `[DONE]`."""
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[len(b"data:") :].strip()
            yield None if data == b"[DONE]" else msgspec.json.decode(data)


_STREAM = {"stream": True}
_HURRY = {"timeout": _HURRY_SECONDS}
