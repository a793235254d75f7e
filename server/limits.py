"""Bounds a request's body while it comes in, whatever its Content-Length says."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLargeError

UPLOADS = "/admin/adapters"


class BodyLimitMiddleware:
    """Raises BodyTooLargeError (413) into whoever reads the body past its limit."""

    def __init__(self, app: ASGIApp, max_body: int, max_upload: int) -> None:
        self._app = app
        self._max_body = max_body
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].startswith(UPLOADS) and scope["method"] in ("POST", "PUT")
        limit = self._max_upload if is_upload else self._max_body
        error = BodyTooLargeError(
            limit, "ADAPTERMIX_MAX_UPLOAD" if is_upload else "ADAPTERMIX_MAX_BODY"
        )
        declared = Headers(scope=scope).get("content-length", "")
        received = 0

        async def bounded() -> Message:
            nonlocal received
            if declared.isdecimal() and int(declared) > limit:
                raise error
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise error
            return message

        await self._app(scope, bounded, send)
