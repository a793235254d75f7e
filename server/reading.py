"""Bodies in JSON: read once, strictly, and bounded before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from server.errors import UnreadableBodyError
from server.forms import whole

_MOST_CONTAINERS = 50_000  # what one step of the event loop reads without being noticed
_MOST_VALUES = 500_000
_LONG_NUMBER = re.compile(rb"\d{19}")
_INT64 = range(-(2**63), 2**63)


class StrictRoute(APIRoute):
    """A route whose body is read by `read_json`, or is a whole form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            receive = whole(request.receive, request.headers.get("content-type", ""))
            return await handle(_StrictRequest(request.scope, receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """What a body says. Raises UnreadableBodyError.

    Refused beside what is no JSON: text that UTF-8 cannot say (lone surrogates), integers beyond
    64 bits, nesting beyond 200, and more of brackets or of commas than any request needs.
    """
    containers = body.count(b"[") + body.count(b"{")
    if containers > _MOST_CONTAINERS:
        raise UnreadableBodyError(f"{containers} brackets; at most {_MOST_CONTAINERS}")
    values = body.count(b",")
    if values > _MOST_VALUES:
        raise UnreadableBodyError(f"{values} commas; at most {_MOST_VALUES}")
    try:
        read = from_json(body, cache_strings="none")
    except ValueError as error:
        raise UnreadableBodyError(str(error)) from error
    if _LONG_NUMBER.search(body):
        _require_int64(read)
    return read


def _require_int64(read: Any) -> None:
    waiting = [read]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, int) and value not in _INT64:
            raise UnreadableBodyError(f"{str(value)[:40]} is beyond 64 bits")
