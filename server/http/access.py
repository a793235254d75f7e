"""The door: who may send what, decided from method, path and headers, before any of the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, QueryParams
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.errors import StoreError
from server.errors import (
    BusyError,
    ContentTypeError,
    EncodingError,
    InputError,
    InsufficientScopeError,
    MalformedRequestError,
    ServerError,
    StoppingError,
    UnknownMethodError,
    UnknownRouteError,
)
from server.http.arrival import timely
from server.http.auth import Auth
from server.http.draining import Draining
from server.http.error_replies import BodyTooLargeError, error_response
from server.http.shaping import shaped

Access = Literal["anyone", "page", "use", "admin"]
Body = Literal["none", "small", "json", "upload"]
MOST_ADMINS = 64  # of admins' requests at a time
SMALL_BODY = 64 << 10  # bytes of what only names things
BODY_PATIENCE = 30.0  # seconds
MOST_QUERY = 2048  # bytes, which are parsed in no time
MOST_TYPE = 256  # characters of a Content-Type, likewise

_FORM = ("multipart/form-data",)
_JSON = ("application/json",)
_JSON_KIND = re.compile(r"application/[\w!#$%&'*+.^`|~-]+\+json", re.ASCII)
_ONCE = (
    *("host", "origin", "authorization", "x-api-key"),
    *("content-type", "content-encoding", "transfer-encoding"),
)
_UTF8 = ("utf-8", "utf8")


@dataclass(frozen=True, slots=True)
class RouteAccess:
    """One route: who may use it, and what its body may be."""

    method: str
    path: str  # {name} is one segment, {name:path} several
    access: Access  # page: anyone, but without keys only programs and pages of this machine
    # small and json: JSON of at most SMALL_BODY and ADAPTERMIX_MAX_BODY bytes; upload: a multipart
    # form of at most ADAPTERMIX_MAX_UPLOAD.
    body: Body = "none"
    query: tuple[str, ...] | None = ()  # parameters, each once; None: any, as monitors add theirs


_ADAPTER = "/admin/adapters/{name}"
# A route that is not here does not exist.
ENTRIES = (
    RouteAccess("GET", "/health", "anyone", query=None),
    RouteAccess("GET", "/health/live", "anyone", query=None),
    RouteAccess("GET", "/health/ready", "anyone", query=None),
    RouteAccess("GET", "/metrics", "page", query=None),
    RouteAccess("GET", "/docs", "page"),
    RouteAccess("GET", "/docs/{file:path}", "page"),
    RouteAccess("GET", "/openapi.json", "page"),
    RouteAccess("GET", "/info", "use"),
    RouteAccess("POST", "/", "use", "json"),
    RouteAccess("POST", "/generate", "use", "json"),
    RouteAccess("POST", "/generate_stream", "use", "json"),
    RouteAccess("POST", "/score", "use", "json"),
    RouteAccess("GET", "/v1/models", "use"),
    RouteAccess("GET", "/v1/models/{model:path}", "use"),
    RouteAccess("POST", "/v1/completions", "use", "json"),
    RouteAccess("POST", "/v1/chat/completions", "use", "json"),
    RouteAccess("GET", "/admin/routers", "admin"),
    RouteAccess("GET", "/admin/merged", "admin"),
    RouteAccess("PUT", "/admin/merged", "admin", "json"),
    RouteAccess("DELETE", "/admin/merged", "admin"),
    RouteAccess("GET", "/admin/adapters", "admin", query=("tag",)),
    RouteAccess("POST", "/admin/adapters", "admin", "upload"),
    RouteAccess("POST", "/admin/adapters/check", "admin", "upload"),
    RouteAccess("GET", _ADAPTER, "admin"),
    RouteAccess("DELETE", _ADAPTER, "admin", query=("force",)),
    RouteAccess("GET", f"{_ADAPTER}/texts", "admin"),
    RouteAccess("PUT", f"{_ADAPTER}/texts", "admin", "upload"),
    RouteAccess("PUT", f"{_ADAPTER}/aliases/{{alias}}", "admin", "small"),
    RouteAccess("DELETE", f"{_ADAPTER}/aliases/{{alias}}", "admin"),
    RouteAccess("POST", f"{_ADAPTER}/load", "admin"),
    RouteAccess("POST", f"{_ADAPTER}/pin", "admin", "small"),
    RouteAccess("POST", f"{_ADAPTER}/unload", "admin"),
)


class AccessMiddleware:
    """ASGI middleware. What it refuses is answered before one byte of the body is read."""

    def __init__(
        self,
        app: ASGIApp,
        auth: Auth,
        draining: Draining,
        max_body: int,
        max_upload: int,
        entries: Sequence[RouteAccess] = ENTRIES,
        body_patience: float = BODY_PATIENCE,
    ) -> None:
        self._app = app
        self._auth = auth
        self._draining = draining
        self._body_patience = body_patience
        self._admins = 0  # admins' requests under way
        self._entries = [(compile_path(entry.path)[0], entry) for entry in entries]
        self._limits: Mapping[Body, tuple[int, str]] = {
            "none": (0, ""),
            "small": (SMALL_BODY, ""),
            "json": (max_body, "ADAPTERMIX_MAX_BODY"),
            "upload": (max_upload, "ADAPTERMIX_MAX_UPLOAD"),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            try:
                entry = self._entry(scope["method"], scope["path"])
                bounded = await self._admit(entry, scope, receive)
            except (ServerError, StoreError, BodyTooLargeError) as error:
                await error_response(scope, error)(scope, receive, send)
                return
            with self._admin(entry):
                await self._app(scope, bounded, shaped(scope, bounded, send))

    @contextmanager
    def _admin(self, entry: RouteAccess) -> Iterator[None]:
        """Around an answer: admins' work has a bound of its own."""
        count = entry.access == "admin"
        self._admins += count
        try:
            yield
        finally:
            self._admins -= count

    async def _admit(self, entry: RouteAccess, scope: Scope, receive: Receive) -> Receive:
        """The body that a route may read. Raises ServerError, StoreError, BodyTooLargeError."""
        headers = Headers(scope=scope)
        if entry.access != "anyone":
            _require_once(headers)
            await self._require_access(entry, headers)
        if entry.access == "admin" and self._admins >= MOST_ADMINS:
            raise BusyError(f"{self._admins} requests of admins are under way")
        if self._draining.is_on and entry.access in ("use", "admin"):
            raise StoppingError
        _require_known_query(entry, scope)
        # Nothing here reads cookies, and the library that parses them does so for every request.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"cookie"]
        limit, setting = self._limits[entry.body]
        too_large = BodyTooLargeError(limit, setting)
        declared = headers.get("content-length", "0")
        length = int(declared[:20]) if declared.isdecimal() else 0
        is_chunked = "transfer-encoding" in headers
        kinds = _FORM if entry.body == "upload" else _JSON
        _require_short_type(headers, kinds)
        if length > limit or (is_chunked and entry.body == "none"):
            raise too_large
        if length or is_chunked:
            _require_type(headers, kinds)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        return timely(bounded, self._body_patience)

    def _entry(self, method: str, path: str) -> RouteAccess:
        allowed = []
        for pattern, entry in self._entries:
            if pattern.fullmatch(path):  # `$` lets a newline pass
                if entry.method == method:
                    return entry
                allowed.append(entry.method)
        if allowed:
            raise UnknownMethodError(method, allowed)
        raise UnknownRouteError(path)

    async def _require_access(self, entry: RouteAccess, headers: Headers) -> None:
        if self._auth.is_open:
            self._auth.require_own_page(headers)
        elif entry.access != "page":
            role = await self._auth.role(headers)
            if entry.access == "admin" and role != "admin":
                raise InsufficientScopeError(
                    "this route needs an admin key; the one you sent is for use only"
                )


def _require_once(headers: Headers) -> None:
    """Raises MalformedRequestError where a header that decides comes twice: readers may differ on
    it."""
    for name in _ONCE:
        count = len(headers.getlist(name))
        if count > 1:
            raise MalformedRequestError(f"{count} {name.title()} headers: send one")


def _require_known_query(entry: RouteAccess, scope: Scope) -> None:
    hint = f"known are {', '.join(entry.query)}" if entry.query else "none is known here"
    if (size := len(scope["query_string"])) > MOST_QUERY:
        bound = f"at most {MOST_QUERY} are read"
        bound = bound if entry.query is None else f"{bound}; {hint}"
        raise InputError("the query", f"{size} bytes of query parameters", bound)
    if entry.query is None:
        return
    names: set[str] = set()
    for name, _ in QueryParams(scope["query_string"]).multi_items():
        if name not in entry.query:
            raise InputError(name[:80], "a query parameter", f"is unknown; {hint}")
        if name in names:
            raise InputError(name, "two query parameters", "send one")
        names.add(name)


def _require_short_type(headers: Headers, allowed: Sequence[str]) -> None:
    content_type = headers.get("content-type", "")
    if len(content_type) > MOST_TYPE:
        excerpt = f"{content_type[:32]}...{content_type[-40:]}"
        raise ContentTypeError(excerpt, [f"{allowed[0]} in at most {MOST_TYPE} characters"])


def _require_type(headers: Headers, allowed: Sequence[str]) -> None:
    """JSON may be of a kind of its own, such as application/problem+json."""
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in allowed and not (allowed is _JSON and _JSON_KIND.fullmatch(kind)):
        raise ContentTypeError(kind, allowed)
    _, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _UTF8:
        raise ContentTypeError(f"{kind}; charset={charset}", [f"{allowed[0]} in UTF-8"])
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        encoding = headers.get(name, plain)
        if encoding.strip().lower() != plain:
            raise EncodingError(name, encoding)
