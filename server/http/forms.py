"""Multipart forms: they come whole, with fields that the route knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from server.errors import InputError

MOST_PART_HEADER = 1024  # bytes of one header of a part
_SPACE = b" \t\r\n"
_MARK = b"\r\n-"  # a boundary begins like this, and much that is none
_PIECE = 2 << 10  # bytes with many marks, which are parsed in a few milliseconds


def whole(receive: Receive, content_type: str) -> Receive:
    """`receive` in pieces, for a multipart form, which must have its end.

    The parser takes a form that was cut for a whole one, without its last part, and reads at once
    whatever it is given: between two pieces that may hold several parts others have their turn.
    Raises MultiPartException, which becomes a 400.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        return receive
    end = b"--" + boundary + b"--"
    heads: MultipartParser | None = None
    tail = buffered = b""
    more = True

    async def checked() -> Message:
        nonlocal heads, tail, buffered, more
        if buffered:
            await asyncio.sleep(0)
        else:
            message = await receive()
            if message["type"] != "http.request":
                return message
            buffered = message.get("body", b"")
            more = bool(message.get("more_body"))
            tail = (tail + buffered)[-len(end) - len(_SPACE) :]
            if tail and not more and not tail.rstrip(_SPACE).endswith(end):
                raise MultiPartException("the form does not end with its boundary: cut short?")
        size = len(buffered) if buffered.count(_MARK) <= 1 else _PIECE
        piece, buffered = buffered[:size], buffered[size:]
        try:
            if heads is None:
                heads = MultipartParser(boundary, {}, max_header_size=MOST_PART_HEADER)
            heads.write(piece)
        except FormParserError as error:
            bound = f"a part has at most 8 headers of at most {MOST_PART_HEADER} bytes each"
            raise MultiPartException(f"Invalid multipart data: {error}; {bound}") from error
        return {"type": "http.request", "body": piece, "more_body": more or bool(buffered)}

    return checked


def known_fields(
    *, once: tuple[str, ...], often: tuple[str, ...] = ()
) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses other fields, and those twice that may come once: InputError."""

    async def check(request: Request) -> None:
        names: set[str] = set()
        for name, _ in (await request.form()).multi_items():
            if name not in (*once, *often):
                raise InputError(
                    name[:80], "a field", f"is unknown; known are {', '.join((*once, *often))}"
                )
            if name in names and name in once:
                raise InputError(name, "two fields", "send one")
            names.add(name)

    return check
