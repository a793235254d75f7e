"""Requests and responses of httpx, for both clients: a call becomes one, the other is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from adaptermix.client.calls import Call, Form, Request
from adaptermix.client.failures import failure_of
from adaptermix.client.reading import ForeignBodyError
from adaptermix.errors import InvalidInputError

T = TypeVar("T")
_EVENTS = "text/event-stream"


def built(http: httpx.Client | httpx.AsyncClient, request: Request, form: Form | None) -> Any:
    """The request as httpx sends it. Raises InvalidInputError for what JSON can't say."""
    fields: dict[str, Any] = {"json": request.json}
    if form is not None:
        fields = {"data": dict(form.fields), "files": form.files}
    try:
        return http.build_request(request.method, request.path, params=request.params, **fields)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the request cannot be said in JSON: {error}") from error


def answer_of(call: Call[T], response: httpx.Response) -> T:
    """What a response says, read whole. Raises StatusError, ForeignBodyError."""
    if response.is_success:
        return call.parse(response.content)
    if response.status_code in call.answers_at:
        try:
            return call.parse(response.content)
        except ForeignBodyError:
            pass  # an error like any other
    raise failure(response)


def failure(response: httpx.Response) -> Exception:
    """The error of a response that is no success, read whole."""
    return failure_of(response.status_code, response.content, response.headers)


def require_events(response: httpx.Response) -> None:
    """Raises ForeignBodyError where a success is no stream of events."""
    kind = response.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != _EVENTS:
        raise ForeignBodyError


def document(method: Callable[..., Any], define: Callable[..., Any], answer: str) -> None:
    """Give a method the name, the documentation and the signature of what defines its call.

    answer: what it returns, where {} stands for the type that the call is answered by.
    """
    signature = inspect.signature(define)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    _, _, answered = str(signature.return_annotation).partition("[")
    method.__name__, method.__qualname__ = define.__name__, define.__qualname__
    method.__doc__, method.__module__ = define.__doc__, define.__module__
    method.__dict__["__signature__"] = signature.replace(
        parameters=[this, *signature.parameters.values()],
        return_annotation=answer.format(answered.removesuffix("]")),
    )
