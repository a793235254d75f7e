"""Error bodies: LoRAX's for the native routes, OpenAI's under /v1."""

from __future__ import annotations

from typing import Any

from server.schemas.base import Reply


class ErrorReply(Reply):
    """`error` names the field, the value and what would work; `error_type` is for programs."""

    error: str
    error_type: str


class OpenAIErrorDetail(Reply):
    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class OpenAIErrorReply(Reply):
    error: OpenAIErrorDetail


EXAMPLES: dict[int, tuple[str, str]] = {
    400: ("bad_request", "the form does not end with its boundary: cut short?"),
    401: ("unauthorized", "an API key is needed: send Authorization: Bearer <key>"),
    403: ("forbidden", "this route needs an admin key"),
    404: ("not_found", "adapter 'maths' does not exist; near names: math"),
    408: ("timeout", "the request took longer than its timeout of 5 s and was cancelled"),
    409: ("conflict", "adapter math@1 is pinned: unpin it first, or delete with force=true"),
    413: ("too_large", "the body is larger than 8388608 bytes (ADAPTERMIX_MAX_BODY)"),
    415: ("content_type", "no Content-Type: send multipart/form-data"),
    422: (
        "validation",
        "Input validation error: parameters.temperature = -1: "
        "Input should be greater than or equal to 0",
    ),
    424: ("generation", "adapter sha256:... could not be loaded"),
    429: ("overloaded", "256 requests are waiting; try again in 2 s"),
    503: ("engine_not_ready", "the engine is restarting"),
    507: ("store_full", "the store's database has no room left on its disk"),
}


def native_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of a native route."""
    return {
        status: {
            "model": ErrorReply,
            "description": EXAMPLES[status][0],
            "content": {
                "application/json": {
                    "example": {"error": EXAMPLES[status][1], "error_type": EXAMPLES[status][0]}
                }
            },
        }
        for status in statuses
    }


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of a /v1 route."""
    return {
        status: {
            "model": OpenAIErrorReply,
            "description": EXAMPLES[status][0],
            "content": {
                "application/json": {
                    "example": {
                        "error": {
                            "message": EXAMPLES[status][1],
                            "type": EXAMPLES[status][0],
                            "param": None,
                            "code": status,
                        }
                    }
                }
            },
        }
        for status in statuses
    }
