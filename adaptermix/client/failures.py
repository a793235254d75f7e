"""Failures as a server tells them, turned into the errors that are raised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adaptermix import errors
from adaptermix.client.reading import ForeignBodyError, as_json
from adaptermix.errors import StatusError

# Every kind of error that the server tells of, with the status it has; `server.errors` has them.
TYPES: dict[str, tuple[int, type[StatusError]]] = {
    "bad_request": (400, errors.BadRequestError),
    "unauthorized": (401, errors.UnauthorizedError),
    "forbidden": (403, errors.ForbiddenError),
    "not_found": (404, errors.NotFoundError),
    "method_not_allowed": (405, errors.MethodNotAllowedError),
    "timeout": (408, errors.RequestTimeoutError),
    "conflict": (409, errors.ConflictError),
    "too_large": (413, errors.TooLargeError),
    "content_type": (415, errors.UnsupportedContentError),
    "content_encoding": (415, errors.UnsupportedContentError),
    "range": (416, StatusError),
    "validation": (422, errors.InvalidRequestError),
    "invalid_adapter": (422, errors.AdapterRefusedError),
    "generation": (424, errors.GenerationFailedError),
    "overloaded": (429, errors.OverloadedError),
    "head_too_large": (431, errors.HeadTooLargeError),
    "internal": (500, errors.ServerFaultError),
    "integrity": (500, errors.ServerFaultError),
    "store_broken": (500, errors.ServerFaultError),
    "engine": (500, errors.ServerFaultError),
    "busy": (503, errors.UnavailableError),
    "cancelled": (503, errors.UnavailableError),
    "engine_died": (503, errors.UnavailableError),
    "engine_not_ready": (503, errors.UnavailableError),
    "router_unavailable": (503, errors.UnavailableError),
    "stopping": (503, errors.UnavailableError),
    "store_unavailable": (503, errors.UnavailableError),
    "store_full": (507, errors.InsufficientStorageError),
}
_BY_STATUS: dict[int, type[StatusError]] = {}
for _status, _class in TYPES.values():
    _BY_STATUS.setdefault(_status, _class)
_FIELD = re.compile(r"Input validation error: ([\w.]+) = ")
_MOST_TOLD = 200  # bytes of an answer that isn't AdapterMix's


def failure_of(status: int, content: bytes, headers: Mapping[str, str]) -> StatusError:
    """The error of an answer that is no success, whoever it is from."""
    try:
        failure = _from_body(as_json(content), status, headers)
    except ForeignBodyError:
        failure = None
    if failure is not None:
        return failure
    # In UTF-8, whatever it says: there are charsets that are none of text.
    text = content[:_MOST_TOLD].decode(errors="replace")
    message = f"the server answered {status}: {text}"
    return _class_of(status, None)(message, status=status, headers=headers)


def failure_of_event(value: Any, headers: Mapping[str, str]) -> StatusError | None:
    """The error that an event of a stream tells of; None where it tells of none.

    headers: the stream's.
    """
    return _from_body(value, None, headers)


def _from_body(value: Any, status: int | None, headers: Mapping[str, str]) -> StatusError | None:
    """The error in a body of the native API or of OpenAI's; None where it is neither's."""
    match value:
        case {"error": str(message)}:
            kind, field = value.get("error_type"), None
        case {"error": {"message": str(message), "type": kind, **details}}:
            kind, field = _openai_kind(kind, details.get("code")), details.get("param")
        case _:
            return None
    kind = kind if isinstance(kind, str) else None
    named = _FIELD.match(message)
    field = field if isinstance(field, str) else named and named[1]
    if status is None:
        status, _ = TYPES.get(kind or "", (500, None))
    return _class_of(status, kind)(message, status=status, type=kind, field=field, headers=headers)


def _openai_kind(kind: Any, code: Any) -> Any:
    """The server's word: OpenAI's API has room for it where no field is to blame."""
    if isinstance(code, str) and code in TYPES:
        return code
    return "validation" if kind == "invalid_request_error" else kind


def _class_of(status: int, kind: str | None) -> type[StatusError]:
    expected, error_class = TYPES.get(kind or "", (None, StatusError))
    if expected == status:
        return error_class
    return _BY_STATUS.get(status, errors.ServerFaultError if status >= 500 else StatusError)
