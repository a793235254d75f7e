"""Every error a client can get, in one table, written LoRAX's way or OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from adapters_store import errors as store_errors
from adapters_store.metadata.faults import FULL
from router_engine import errors as engine_errors
from router_engine.routers import errors as router_errors
from server.schemas.problems import describe_problem, path_of

log = structlog.get_logger(__name__)

_MOST_TOLD = 1024  # bytes of a message, of which some may be what was sent
_MOST_PROBLEMS = 8
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


class ConflictError(ServerError):
    """The state of a thing forbids what was asked."""


class GenerationFailedError(ServerError):
    """The engine ended the request with an error."""


class RequestCancelledError(ServerError):
    """The request was cancelled before it ended."""


class RequestTimeoutError(ServerError):
    """The request took longer than it may; what was under way for it is cancelled."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the request took longer than its timeout of {seconds:g} s and was cancelled; ask for "
            "less, or set a longer timeout"
        )


class OverloadedError(ServerError):
    """Too many requests wait; `retry_after` seconds is a fair time to come back."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")


class BusyError(ServerError):
    """As much of this kind of work is under way as there may be."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; try again in a moment")


class StoppingError(ServerError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is stopping and takes no new requests")


class UnauthorizedError(ServerError):
    """No key, or an unknown one."""


class ForbiddenError(ServerError):
    """The key does not reach this far."""


class UnknownRouteError(ServerError):
    """There is no such path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path[:_MOST_ECHOED]!r}; /docs lists the routes")


class MethodNotAllowedError(ServerError):
    """The path is there, for other methods."""

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        self.allowed = allowed
        super().__init__(f"no {method[:_MOST_ECHOED]} here: use {' or '.join(allowed)}")


class ContentTypeError(ServerError):
    """The body is of another kind than the route reads."""

    def __init__(self, given: str, allowed: Sequence[str]) -> None:
        told = f"Content-Type {given[:_MOST_ECHOED]!r}" if given else "no Content-Type"
        super().__init__(f"{told}: send {' or '.join(allowed)}")


class EncodingError(ServerError):
    """The body is packed."""

    def __init__(self, header: str, given: str) -> None:
        super().__init__(f"{header} {given[:_MOST_ECHOED]!r}: send the body as it is")


class HeadTooLargeError(ServerError):
    """More of a request's head, or of one thing in it, than is read."""

    def __init__(self, what: str, most: str) -> None:
        super().__init__(f"{what}: at most {most} are read")


class HeadTooSlowError(ServerError):
    """A head that does not become whole."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "the head of the request did not arrive: send it whole within "
            f"{seconds:g} s (ADAPTERMIX_BODY_PATIENCE)"
        )


class BadRequestError(ServerError):
    """What is no proper HTTP request."""


class BodyTooLargeError(HTTPException):
    """More bytes than a limit allows. An HTTPException, so that body parsers let it through."""

    def __init__(self, limit: int, setting: str) -> None:
        bound = f"larger than {limit} bytes" + (f" ({setting})" if setting else "")
        told = f"the body is {bound}" if limit else "this route takes no body"
        super().__init__(413, told)


class BodyTooSlowError(HTTPException):
    """A body that stalls, or comes drop by drop. As BodyTooLargeError."""

    def __init__(self, seconds: float, slowest: int) -> None:
        told = f"the body did not arrive: send at least {slowest} bytes a second, without a pause"
        bound = f"of more than {seconds:g} s (ADAPTERMIX_BODY_PATIENCE)"
        super().__init__(408, f"{told} {bound}", {"Connection": "close"})


class UnreadableBodyError(HTTPException):
    """A body that is no JSON, or says what no field can hold. As BodyTooLargeError."""

    def __init__(self, problem: str) -> None:
        super().__init__(422, f"Input validation error: the body is not usable JSON: {problem}")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client sees it."""

    status: int
    error_type: str
    message: str
    param: str | None = None
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


def _bounded(text: str, most: int = _MOST_TOLD) -> str:
    """A message that anybody's input may be part of, as UTF-8 can say it."""
    told = text[: most + 1].encode(errors="backslashreplace")
    if len(told) <= most:
        return told.decode()
    return f"{told[: most - 3].decode(errors='ignore')}..."


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
    (ConflictError, 409, "conflict"),
    (GenerationFailedError, 424, "generation"),
    (RequestCancelledError, 503, "cancelled"),
    (RequestTimeoutError, 408, "timeout"),
    (OverloadedError, 429, "overloaded"),
    (StoppingError, 503, "stopping"),
    (BusyError, 503, "busy"),
    (UnauthorizedError, 401, "unauthorized"),
    (ForbiddenError, 403, "forbidden"),
    (BadRequestError, 400, "bad_request"),
    (UnknownRouteError, 404, "not_found"),
    (MethodNotAllowedError, 405, "method_not_allowed"),
    (ContentTypeError, 415, "content_type"),
    (EncodingError, 415, "content_encoding"),
    (HeadTooLargeError, 431, "head_too_large"),
    (HeadTooSlowError, 408, "timeout"),
)
_HTTP_TYPES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    416: "range",
    422: "validation",
}
_PREFIXED = ("validation",)
_SOON_OVER = (
    *(engine_errors.EngineNotReadyError, engine_errors.EngineDiedError),
    *(RequestCancelledError, StoppingError, BusyError),
    *(router_errors.RouterUnavailableError, store_errors.StoreUnavailableError),
)


def describe(error: Exception) -> Failure:
    """What a client is told of an error; one that is not in the table is a bug, and a 500."""
    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    if _is_of_a_full_disk(error):
        message = "there is no room left on the server's disk: free some, then send it again"
        return Failure(507, "store_full", message)
    if isinstance(error, HTTPException):
        kind = _HTTP_TYPES.get(error.status_code, "http")
        return Failure(error.status_code, kind, str(error.detail), headers=error.headers or {})
    for kind_of_error, status, error_type in TABLE:
        if isinstance(error, kind_of_error):
            message = str(error)
            if error_type in _PREFIXED:
                message = f"Input validation error: {message}"
            param = getattr(error, "field", None)
            return Failure(status, error_type, message, param, _headers(error))
    log.error("unexpected error", exc_info=error)
    return Failure(
        500, "internal", f"internal error ({type(error).__name__}); see the server's log"
    )


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    """Parsers of bodies take an error of the disk for one of the body: it is what caused theirs."""
    while error is not None and not isinstance(error, store_errors.StoreError):
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def install(app: FastAPI) -> None:
    """Make every error leave as one of the two bodies."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(request.scope, error)

    for kind in (RequestValidationError, HTTPException, ServerError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(store_errors.StoreError, handle)
    app.add_exception_handler(OSError, handle)
    app.add_exception_handler(engine_errors.EngineError, handle)


def error_response(scope: Scope, error: Exception) -> JSONResponse:
    """The answer that tells of an error, in the shape of the API that was asked."""
    failure = describe(error)
    body = failure.openai() if is_openai(scope) else failure.native()
    return JSONResponse(body, failure.status, dict(failure.headers))


def is_openai(scope: Scope) -> bool:
    """Whether OpenAI's API was asked. Of the path: a URL is made of the Host header, if any."""
    path: str = scope["path"]
    return path.startswith("/v1/")


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, MethodNotAllowedError):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, _SOON_OVER):
        return {"Retry-After": "2"}
    if isinstance(error, RequestTimeoutError):
        return {"X-Should-Retry": "false"}  # or OpenAI's client would wait as long again, twice
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def _describe_validation(error: RequestValidationError) -> Failure:
    problems = error.errors()
    message = "; ".join(
        describe_problem(problem, _path(problem)) for problem in problems[:_MOST_PROBLEMS]
    )
    if len(problems) > _MOST_PROBLEMS:
        message += f"; and {len(problems) - _MOST_PROBLEMS} more"
    first = _path(problems[0]) if problems else None
    return Failure(422, "validation", f"Input validation error: {message}", first)


def _path(problem: Mapping[str, Any]) -> str:
    return path_of(problem, problem["loc"][1:])
