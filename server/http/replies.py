"""Replies as JSON, written in parts: no single one holds up the other threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

_FEW = 32  # items that are written in one go
_SLICE = 1 << 14  # characters, or as many as numbers take
_NUMBER = 8  # characters
_SENT = 1 << 18  # bytes that are sent in one go
_TAKEN_SECONDS = 30.0  # in which a client takes as many; one that does not keeps no place
_PLAIN = str | int | float | None


class WrittenResponse(Response):
    """An answer whose JSON is there already."""

    media_type = "application/json"


class PartedResponse(StreamingResponse):
    """An answer whose JSON is there already, in parts that are never joined: it may be long.

    It is cut off, and the connection with it, where the client does not take a part in time.
    """

    media_type = "application/json"

    def __init__(self, parts: Sequence[bytes], patience: float = _TAKEN_SECONDS) -> None:
        super().__init__(_each(parts), headers={"content-length": str(sum(map(len, parts)))})
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""

        async def timely(message: Message) -> None:
            async with asyncio.timeout(self._patience):
                await send(message)

        with suppress(ClientDisconnect, TimeoutError):
            await super().__call__(scope, receive, timely)


async def _each(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def json_of(reply: Any) -> bytes:
    """The JSON of a reply (a model, or lists and dicts of them). What is not finite is null.

    A call into a library holds all threads up until it returns. So what may be long is handed to
    it piece by piece.
    """
    return b"".join(_parts(reply))


def json_parts(reply: Any) -> list[bytes]:
    """As `json_of`, for a `PartedResponse`."""
    parts: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for part in _parts(reply):
        waiting.append(part)
        size += len(part)
        if size >= _SENT:
            parts.append(b"".join(waiting))
            waiting, size = [], 0
    return [*parts, b"".join(waiting)]


def _parts(value: Any) -> Iterator[bytes]:
    if _is_short(value):
        yield to_json(value, inf_nan_mode="null")
    elif isinstance(value, BaseModel):
        yield from _model(value)
    elif isinstance(value, list):
        yield from _list(value)
    elif isinstance(value, str):
        yield from _text(value)
    else:
        yield to_json(value, inf_nan_mode="null")


def _is_short(value: Any) -> bool:
    """Whether it is little, to all appearance: lists hold things of one kind."""
    if isinstance(value, BaseModel):
        return all(map(_is_short, value.__dict__.values()))
    if isinstance(value, list | dict):
        return len(value) <= _FEW and all(map(_is_short, islice(value, 1)))
    return not isinstance(value, str) or len(value) <= _SLICE


def _model(value: BaseModel) -> Iterator[bytes]:
    separator = b"{"
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        if field.exclude_if is not None and field.exclude_if(item):
            continue
        yield separator + to_json(name) + b":"
        yield from _parts(item)
        separator = b","
    yield b"{}" if separator == b"{" else b"}"


def _list(value: list[Any]) -> Iterator[bytes]:
    separator = b"["
    if value and isinstance(value[0], _PLAIN):
        for run in _runs(value):
            yield separator
            if len(run) == 1:
                yield from _parts(run[0])
            else:
                yield to_json(run, inf_nan_mode="null")[1:-1]
            separator = b","
    else:
        for item in value:
            yield separator
            yield from _parts(item)
            separator = b","
    yield b"]"


def _runs(value: Sequence[_PLAIN]) -> Iterator[Sequence[_PLAIN]]:
    """Neighbours that are written together: many numbers, or a few long texts."""
    start = size = 0
    for end, item in enumerate(value, 1):
        size += _NUMBER + (len(item) if isinstance(item, str) else 0)
        if size >= _SLICE or end == len(value):
            yield value[start:end]
            start, size = end, 0


def _text(value: str) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(value), _SLICE):
        yield to_json(value[start : start + _SLICE])[1:-1]
    yield b'"'
