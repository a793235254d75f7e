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


class ConnectionFailedError(AdapterMixError):
    """No answer came: no server there, a broken connection, or a host that no resolver knows."""


class TimedOutError(ConnectionFailedError):
    """The server did not answer, or stopped answering, within the client's `timeout`.

    A request that the *server* gave up is a RequestTimeoutError.
    """


class ForeignAnswerError(AdapterMixError):
    """What answered is another program than AdapterMix, or a proxy before it."""


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
