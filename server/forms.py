"""Multipart forms: they come whole, with fields that the route knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from server.errors import InputError

_SPACE = b" \t\r\n"


def whole(receive: Receive, content_type: str) -> Receive:
    """What `receive` gives of a multipart form, which must have its end.

    The parser takes a form that was cut for a whole one, without its last part. Raises
    MultiPartException, which becomes a 400.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        return receive
    end = b"--" + boundary + b"--"
    tail = b""

    async def checked() -> Message:
        nonlocal tail
        message = await receive()
        if message["type"] == "http.request":
            tail = (tail + message.get("body", b""))[-len(end) - len(_SPACE) :]
            is_last = tail and not message.get("more_body")
            if is_last and not tail.rstrip(_SPACE).endswith(end):
                raise MultiPartException("the form does not end with its boundary: cut short?")
        return message

    return checked


def known_fields(
    *, once: tuple[str, ...], often: tuple[str, ...] = ()
) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses other fields, and those twice that may come once: InputError."""

    async def check(request: Request) -> None:
        seen: set[str] = set()
        for name, _ in (await request.form()).multi_items():
            if name not in (*once, *often):
                raise InputError(
                    name[:80], "a field", f"is unknown; known are {', '.join((*once, *often))}"
                )
            if name in seen and name in once:
                raise InputError(name, "two fields", "send one")
            seen.add(name)

    return check
