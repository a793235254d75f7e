"""Every error of ours that a client can get, in one table. No HTTP library is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters_store import errors as store_errors
from adapters_store.metadata.faults import FULL
from router_engine import errors as engine_errors
from router_engine.routers import errors as router_errors

_MOST_MESSAGE = 1024  # bytes of a message, of which some may be what was sent
PREFIX = "Input validation error: "  # LoRAX's
_MOST_ECHOED = 80  # characters of one thing that was sent


class ServerError(Exception):
    """Base of every error that the server raises on purpose."""


class InputError(ServerError):
    """A field holds a value that cannot be used; the message says what would work."""

    def __init__(self, field_name: str, value: str, hint: str) -> None:
        self.field = field_name
        super().__init__(f"{field_name} = {value}: {hint}")


class UnknownModelError(ServerError):
    """`model` is neither the base nor an adapter."""


class StateConflictError(ServerError):
    """The state of a thing forbids what was asked."""


class AnswerFailedError(ServerError):
    """The engine ended the request with an error."""


class RequestCancelledError(ServerError):
    """The request was cancelled before it ended."""


class DeadlineExceededError(ServerError):
    """The request took longer than it may; what was under way for it is cancelled."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the request took longer than its timeout of {seconds:g} s and was cancelled; ask for "
            "less, or set a longer timeout"
        )


class QueueFullError(ServerError):
    """Too many requests wait; `retry_after` seconds is a fair time to come back."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")


class BusyError(ServerError):
    """As much of this kind of work is under way as there may be."""

    def __init__(self, work: str) -> None:
        super().__init__(f"{work}; try again in a moment")


class StoppingError(ServerError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is stopping and takes no new requests")


class InvalidKeyError(ServerError):
    """No key, or an unknown one."""


class InsufficientScopeError(ServerError):
    """The key does not reach this far."""


class UnknownRouteError(ServerError):
    """There is no such path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path[:_MOST_ECHOED]!r}; /docs lists the routes")


class UnknownMethodError(ServerError):
    """The path is there, for other methods."""

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        self.allowed = allowed
        super().__init__(f"no {method[:_MOST_ECHOED]} here: use {' or '.join(allowed)}")


class ContentTypeError(ServerError):
    """The body is of another kind than the route reads."""

    def __init__(self, content_type: str, allowed: Sequence[str]) -> None:
        excerpt = f"Content-Type {content_type[:_MOST_ECHOED]!r}"
        received = excerpt if content_type else "no Content-Type"
        super().__init__(f"{received}: send {' or '.join(allowed)}")


class EncodingError(ServerError):
    """The body is compressed, or encoded otherwise."""

    def __init__(self, header: str, encoding: str) -> None:
        super().__init__(f"{header} {encoding[:_MOST_ECHOED]!r}: send the body as it is")


class OversizedHeadError(ServerError):
    """More of a request's head, or of one thing in it, than is read."""

    def __init__(self, part: str, most: str) -> None:
        super().__init__(f"{part}: at most {most} are read")


class HeadTooSlowError(ServerError):
    """The head of a request did not become whole in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "the head of the request did not arrive: send it whole within "
            f"{seconds:g} s (ADAPTERMIX_BODY_PATIENCE)"
        )


class MalformedRequestError(ServerError):
    """The request is no proper HTTP."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client sees it."""

    status: int  # of HTTP
    error_type: str  # for programs
    message: str  # names the field, the value and what would work
    param: str | None = None  # the field, in OpenAI's shape
    headers: Mapping[str, str] = field(default_factory=dict)

    def native(self) -> dict[str, str]:
        return {"error": _bounded(self.message), "error_type": self.error_type}

    def openai(self) -> dict[str, Any]:
        is_clients = self.status < 500 and self.status not in (408, 429)
        kind = "invalid_request_error" if is_clients else self.error_type
        param = self.param and _bounded(self.param, _MOST_ECHOED)
        code = self.error_type if param is None else f"invalid_{param.split('.')[0]}"
        message = _bounded(self.message)
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _bounded(text: str, most: int = _MOST_MESSAGE) -> str:
    """A message that anybody's input may be part of, as UTF-8 can say it."""
    data = text[: most + 1].encode(errors="backslashreplace")
    if len(data) <= most:
        return data.decode()
    return f"{data[: most - 3].decode(errors='ignore')}..."


# Most special first: the first class that fits decides.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (store_errors.AdapterNotFoundError, 404, "not_found"),
    (store_errors.KeyNotFoundError, 404, "not_found"),
    (store_errors.InvalidReferenceError, 422, "validation"),
    (store_errors.InvalidAdapterError, 422, "invalid_adapter"),
    (store_errors.AdapterInUseError, 409, "conflict"),
    (store_errors.IntegrityError, 500, "integrity"),
    (store_errors.StoreUnavailableError, 503, "store_unavailable"),
    (store_errors.StoreFullError, 507, "store_full"),
    (store_errors.StoreBrokenError, 500, "store_broken"),
    (store_errors.StoreError, 422, "validation"),
    (engine_errors.RequestRefusedError, 422, "validation"),
    (engine_errors.MixtureError, 422, "validation"),
    (engine_errors.AdapterLoadError, 424, "generation"),
    (engine_errors.AdapterBusyError, 409, "conflict"),
    (engine_errors.EngineNotReadyError, 503, "engine_not_ready"),
    (engine_errors.EngineDiedError, 503, "engine_died"),
    (router_errors.RouterInputError, 422, "validation"),
    (router_errors.RouterUnavailableError, 503, "router_unavailable"),
    (engine_errors.RouterError, 424, "generation"),
    (engine_errors.EngineError, 500, "engine"),
    (InputError, 422, "validation"),
    (UnknownModelError, 404, "not_found"),
    (StateConflictError, 409, "conflict"),
    (AnswerFailedError, 424, "generation"),
    (RequestCancelledError, 503, "cancelled"),
    (DeadlineExceededError, 408, "timeout"),
    (QueueFullError, 429, "overloaded"),
    (StoppingError, 503, "stopping"),
    (BusyError, 503, "busy"),
    (InvalidKeyError, 401, "unauthorized"),
    (InsufficientScopeError, 403, "forbidden"),
    (MalformedRequestError, 400, "bad_request"),
    (UnknownRouteError, 404, "not_found"),
    (UnknownMethodError, 405, "method_not_allowed"),
    (ContentTypeError, 415, "content_type"),
    (EncodingError, 415, "content_encoding"),
    (OversizedHeadError, 431, "head_too_large"),
    (HeadTooSlowError, 408, "timeout"),
)
_PREFIXED = ("validation",)
_SOON_OVER = (
    *(engine_errors.EngineNotReadyError, engine_errors.EngineDiedError),
    *(RequestCancelledError, StoppingError, BusyError),
    *(router_errors.RouterUnavailableError, store_errors.StoreUnavailableError),
)


def failure_for(error: Exception) -> Failure | None:
    """An error of ours as a client sees it; None for any other error."""
    if _is_of_a_full_disk(error):
        message = "there is no room left on the server's disk: free some, then send it again"
        return Failure(507, "store_full", message)
    for kind_of_error, status, error_type in TABLE:
        if isinstance(error, kind_of_error):
            message = str(error)
            if error_type in _PREFIXED:
                message = f"{PREFIX}{message}"
            param = getattr(error, "field", None)
            return Failure(status, error_type, message, param, _headers(error))
    return None


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    """Parsers of bodies take an error of the disk for one of the body: it is what caused theirs."""
    while error is not None and not isinstance(error, store_errors.StoreError):
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, UnknownMethodError):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, QueueFullError):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, _SOON_OVER):
        return {"Retry-After": "2"}
    if isinstance(error, DeadlineExceededError):
        return {"X-Should-Retry": "false"}  # or OpenAI's client would wait as long again, twice
    if isinstance(error, InvalidKeyError):
        return {"WWW-Authenticate": "Bearer"}
    return {}
