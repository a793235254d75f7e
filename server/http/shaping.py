"""Errors that a library writes as plain text, in the API's shape."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.exceptions import HTTPException
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.http.error_replies import error_response

_KEPT = ("content-range", "allow", "retry-after")


def shaped(scope: Scope, receive: Receive, send: Send) -> Send:
    """`send`, but for errors in plain text: their text becomes the message of one of ours."""
    start: Message | None = None
    text = b""

    async def sent(message: Message) -> None:
        nonlocal start, text
        if message["type"] == "http.response.start" and _is_plain_error(message):
            start = message
        elif start is None:
            await send(message)
        else:
            text += message.get("body", b"")
            if not message.get("more_body", False):
                headers = Headers(raw=start["headers"])
                kept_headers = {name: headers[name] for name in _KEPT if name in headers}
                error = HTTPException(
                    start["status"], _message(start["status"], text), kept_headers
                )
                await error_response(scope, error)(scope, receive, send)

    return sent


def _message(status: int, text: bytes) -> str:
    return text.decode(errors="replace").strip() or HTTPStatus(status).phrase


def _is_plain_error(message: Message) -> bool:
    kind = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] >= 400 and kind.startswith("text/plain")
