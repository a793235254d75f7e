"""AdapterMix from Python. Each name is imported when it is first used: no torch for a client."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptermix.answers import Answer, Piece
    from adaptermix.client import AsyncClient, Client
    from adaptermix.errors import (
        AdapterMixError,
        AdapterRefusedError,
        BadRequestError,
        BrokenStreamError,
        ClosedError,
        ConflictError,
        ConnectionFailedError,
        ForbiddenError,
        ForeignAnswerError,
        GenerationFailedError,
        HeadTooLargeError,
        InsufficientStorageError,
        InvalidInputError,
        InvalidRequestError,
        MethodNotAllowedError,
        NotFoundError,
        OverloadedError,
        RequestTimeoutError,
        ServerFaultError,
        ServerUnreachableError,
        StartFailedError,
        StatusError,
        TimedOutError,
        TooLargeError,
        UnauthorizedError,
        UnavailableError,
        UnsupportedContentError,
    )
    from adaptermix.llm import LLM
    from adaptermix.mixture import Mixture
    from adaptermix.sampling import SamplingParams

__all__ = [
    "LLM",
    "AdapterMixError",
    "AdapterRefusedError",
    "Answer",
    "AsyncClient",
    "BadRequestError",
    "BrokenStreamError",
    "Client",
    "ClosedError",
    "ConflictError",
    "ConnectionFailedError",
    "ForbiddenError",
    "ForeignAnswerError",
    "GenerationFailedError",
    "HeadTooLargeError",
    "InsufficientStorageError",
    "InvalidInputError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "Mixture",
    "NotFoundError",
    "OverloadedError",
    "Piece",
    "RequestTimeoutError",
    "SamplingParams",
    "ServerFaultError",
    "ServerUnreachableError",
    "StartFailedError",
    "StatusError",
    "TimedOutError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedContentError",
]
_MODULES = {  # of each name that isn't an error's
    "Answer": "answers",
    "AsyncClient": "client",
    "Client": "client",
    "LLM": "llm",
    "Mixture": "mixture",
    "Piece": "answers",
    "SamplingParams": "sampling",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
