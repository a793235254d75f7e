"""The calls about the server itself: what it serves, how it is, what is merged into its base."""

from __future__ import annotations

from adaptermix.client.calls import Call, Request
from adaptermix.client.generation import AnyMixture, mixture_json
from adaptermix.client.reading import ForeignBodyError, picked, shaped
from server.schemas.adapters import MergedReply, RouterList, RouterReply
from server.schemas.health import HealthReply, InfoReply, LiveReply

_MERGED = "/admin/merged"


def live() -> Call[LiveReply]:
    """Whether the server's process runs. Needs no key."""
    return Call(Request(method="GET", path="/health/live"), shaped(LiveReply))


def ready() -> Call[HealthReply]:
    """Whether requests are taken; that they aren't is an answer, and no error. Needs no key."""
    request = Request(method="GET", path="/health/ready")
    return Call(request, shaped(HealthReply), answers_at=frozenset({503}))


def metrics() -> Call[str]:
    """Prometheus' text."""
    return Call(Request(method="GET", path="/metrics"), _metrics)


def info() -> Call[InfoReply]:
    """The base model, its limits, and the server's."""
    return Call(Request(method="GET", path="/info"), shaped(InfoReply))


def routers() -> Call[list[RouterReply]]:
    """Every router, with the levels at which it runs on this server and its parameters."""
    request = Request(method="GET", path="/admin/routers")
    return Call(request, picked(RouterList, lambda reply: reply.routers))


def merged() -> Call[MergedReply]:
    """Which mixture the base weights hold."""
    return Call(Request(method="GET", path=_MERGED), shaped(MergedReply))


def set_merged(mixture: AnyMixture) -> Call[MergedReply]:
    """Fold a fixed mixture into the base, between two steps; other requests go on."""
    request = Request(method="PUT", path=_MERGED, json=mixture_json(mixture))
    return Call(request, shaped(MergedReply))


def clear_merged() -> Call[MergedReply]:
    """Put the kept originals back: the base is bit for bit what it was."""
    return Call(Request(method="DELETE", path=_MERGED), shaped(MergedReply))


def _metrics(content: bytes) -> str:
    if b"\nadaptermix_" not in content:
        raise ForeignBodyError
    return content.decode(errors="replace")
