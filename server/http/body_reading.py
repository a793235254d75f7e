"""Bodies in JSON: read once, strictly, bounded, and beside the event loop where they are long."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import jiter
from fastapi import Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from server.errors import Failure
from server.http.error_replies import InvalidBodyError, UnreadableBodyError, describe
from server.http.forms import whole
from server.http.slices import SLICE, Most, SlicedReader

_SHORT = 16 << 10  # bytes that are read in less time than another thread takes to begin
_LONG_NUMBER = re.compile(rb"\d{19}")
MOST = Most(brackets=50_000, strings=1 << 16, numbers=500_000)
_INT64 = range(-(2**63), 2**63)


class StrictRoute(APIRoute):
    """A route whose body is a whole form, or JSON: read by `read_json`, if long beside the loop."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            receive = whole(request.receive, request.headers.get("content-type", ""))
            read = _StrictRequest(request.scope, receive)
            if self._reads_json() and len(body := await read.body()) > _SHORT:
                threads = request.app.state.container.bodies.reading
                read.value = await threads.run(partial(self._validated, body))
            return await handle(read)

        return strict

    def _reads_json(self) -> bool:
        field = self.body_field
        return field is not None and not isinstance(field.field_info, params.Form)

    def _validated(self, body: bytes) -> Any:
        """The body as the route is given it, found valid at once. Raises InvalidBodyError."""
        value, failure = self._read(body)
        if failure is not None:
            raise InvalidBodyError(failure)
        return value

    def _read(self, body: bytes) -> tuple[Any, Failure | None]:
        """The value, or what is wrong with it.

        Errors hold what they are of: it goes here, not on the event loop when they are forgotten.
        """
        assert self.body_field is not None
        value, errors = self.body_field.validate(read_json(body), {}, loc=("body",))
        return value, describe(RequestValidationError(errors)) if errors else None


class _StrictRequest(Request):
    value: Any = None  # of a body that was validated already

    async def json(self) -> Any:
        return read_json(await self.body()) if self.value is None else self.value


def read_json(body: bytes) -> Any:
    """The JSON of a body. Raises UnreadableBodyError.

    Refused beside what is no JSON: a key twice in one object, text that UTF-8 cannot say (lone
    surrogates), integers beyond 64 bits, nesting beyond 200, and more of brackets, strings or
    numbers than any request needs.
    """
    try:
        if len(body) <= SLICE:
            return _read_at_once(body)
        return SlicedReader(body, _read_at_once, MOST).read()
    except ValueError as error:
        raise UnreadableBodyError(str(error)) from error


def _read_at_once(text: bytes) -> Any:
    read = jiter.from_json(text, cache_mode="none", catch_duplicate_keys=True)
    if _LONG_NUMBER.search(text):
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
