"""Errors as HTTP tells them: the table's, those of bodies, those of the libraries.

They are written LoRAX's way or OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from adapters_store import errors as store_errors
from router_engine import errors as engine_errors
from server.errors import PREFIX, Failure, ServerError, failure_for
from server.schemas.problems import describe_problem, path_of

log = structlog.get_logger(__name__)

_MOST_PROBLEMS = 8
_HTTP_TYPES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    416: "range",
    422: "validation",
}


class BodyTooLargeError(HTTPException):
    """More bytes than a limit allows. An HTTPException, so that body parsers let it through."""

    def __init__(self, limit: int, setting: str) -> None:
        bound = f"larger than {limit} bytes" + (f" ({setting})" if setting else "")
        message = f"the body is {bound}" if limit else "this route takes no body"
        super().__init__(413, message)


class BodyTooSlowError(HTTPException):
    """A body that stalls, or comes drop by drop. As BodyTooLargeError."""

    def __init__(self, seconds: float, slowest: int) -> None:
        super().__init__(
            408,
            f"the body did not arrive: send at least {slowest} bytes a second, without a pause "
            f"of more than {seconds:g} s (ADAPTERMIX_BODY_PATIENCE)",
            {"Connection": "close"},
        )


class UnreadableBodyError(HTTPException):
    """A body that is no JSON, or says what no field can hold. As BodyTooLargeError."""

    def __init__(self, problem: str) -> None:
        super().__init__(422, f"{PREFIX}the body is not usable JSON: {problem}")


class InvalidBodyError(Exception):
    """A body that a route does not take. failure: what is wrong with it, as a client sees it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def describe(error: Exception) -> Failure:
    """An error as a client sees it; one that is not in the table is a bug, and a 500."""
    if isinstance(error, InvalidBodyError):
        return error.failure
    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    failure = failure_for(error)  # first: a parser's error may be of a full disk
    if failure is not None:
        return failure
    if isinstance(error, HTTPException):
        kind = _HTTP_TYPES.get(error.status_code, "http")
        return Failure(error.status_code, kind, str(error.detail), headers=error.headers or {})
    log.error("unexpected error", exc_info=error)
    return Failure(
        500, "internal", f"internal error ({type(error).__name__}); see the server's log"
    )


def install(app: FastAPI) -> None:
    """Make every error leave as one of the two bodies."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(request.scope, error)

    for kind in (RequestValidationError, InvalidBodyError, HTTPException, ServerError, Exception):
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


def _describe_validation(error: RequestValidationError) -> Failure:
    problems = error.errors()
    message = "; ".join(
        describe_problem(problem, _path(problem)) for problem in problems[:_MOST_PROBLEMS]
    )
    if len(problems) > _MOST_PROBLEMS:
        message += f"; and {len(problems) - _MOST_PROBLEMS} more"
    first = _path(problems[0]) if problems else None
    return Failure(422, "validation", f"{PREFIX}{message}", first)


def _path(problem: Mapping[str, Any]) -> str:
    return path_of(problem, problem["loc"][1:])
