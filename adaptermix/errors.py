"""Every error that AdapterMix's Python API raises on purpose: one tree, under AdapterMixError.

No other module is imported here, so that catching an error costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping


class AdapterMixError(Exception):
    """Base of all of them."""


class InvalidInputError(AdapterMixError, ValueError):
    """An argument that cannot be used; the message names it and what would work.

    Nothing has been sent or run.
    """


class StartFailedError(AdapterMixError):
    """An LLM that could not start: no model there, one that isn't served, a store that's away."""


class ClosedError(AdapterMixError):
    """An LLM that was closed before."""


class ConnectionFailedError(AdapterMixError):
    """No answer came, or the connection broke in the middle of one."""


class ServerUnreachableError(ConnectionFailedError):
    """There is no server at the address, or no way to it."""


class TimedOutError(ConnectionFailedError):
    """The server did not answer, or stopped answering, within the client's `timeout`.

    A request that the *server* gave up is a RequestTimeoutError.
    """


class ForeignAnswerError(AdapterMixError):
    """What answered, with success, is another program than AdapterMix."""


class BrokenStreamError(AdapterMixError):
    """A stream that ended before its last event: the answer is not whole."""


class StatusError(AdapterMixError):
    """The server refused or failed. Every documented error is a class below this one.

    The text is the server's own message.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        headers = headers or {}
        self.message = message
        self.status = status  # HTTP's; of an error inside a stream the one it would have had
        self.type = type  # the server's word for the kind of error; None where it said none
        self.field = field  # of the request, where the error is about one and the route says so
        self.request_id = headers.get("x-request-id")  # the server's log has it too
        self.retry_after = _seconds(headers.get("retry-after"))  # None where it makes no promise


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; a date, which this server never sends, is none."""
    return float(text) if text is not None and text.isascii() and text.isdecimal() else None


class BadRequestError(StatusError):
    """400: no proper HTTP request, or a form that is cut."""


class UnauthorizedError(StatusError):
    """401: the server wants an API key, and this is none of its own."""


class ForbiddenError(StatusError):
    """403: the key doesn't reach this far; /admin needs an admin's."""


class NotFoundError(StatusError):
    """404: no adapter, version, alias, model or route of that name."""


class MethodNotAllowedError(StatusError):
    """405: the route is there for other methods."""


class RequestTimeoutError(StatusError):
    """408: the request took longer than its own `timeout`, and the server has cancelled it."""


class ConflictError(StatusError):
    """409: the state of a thing forbids it, such as deleting an adapter that is pinned."""


class TooLargeError(StatusError):
    """413: more bytes than the server takes."""


class UnsupportedContentError(StatusError):
    """415: a body of another kind than the route reads."""


class InvalidRequestError(StatusError):
    """422: a field that the server doesn't take; the message says which, and what would work."""


class AdapterRefusedError(InvalidRequestError):
    """422: an upload that is no adapter for this base model; the message has every problem."""


class GenerationFailedError(StatusError):
    """424: the request was accepted and then failed, such as at an adapter that can't be read."""


class OverloadedError(StatusError):
    """429: too many requests wait; `retry_after` says when to come back."""


class HeadTooLargeError(StatusError):
    """431: more headers than the server reads."""


class ServerFaultError(StatusError):
    """500 and unknown ones above: a fault of the server, which its log tells more about."""


class UnavailableError(ServerFaultError):
    """503: not now, such as while the engine restarts; `retry_after` says when to come back."""


class InsufficientStorageError(ServerFaultError):
    """507: the server's disk or database has no room left."""
