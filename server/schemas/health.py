"""Replies of the open routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.schemas.base import Reply


class LiveReply(Reply):
    status: Literal["live"] = "live"


class HealthReply(Reply):
    """`status` is ready exactly when requests are taken."""

    status: Literal["ready", "not_ready"]
    engine: str = Field(description="starting, ready, restarting or stopped.")


class InfoReply(Reply):
    """What this server serves."""

    version: str
    model_id: str
    architecture: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    routers: list[str]
    max_candidates: int
    max_waiting: int
    default_timeout: float | None
    max_timeout: float
    default_max_new_tokens: int
