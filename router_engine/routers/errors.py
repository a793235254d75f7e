"""Errors of routers, told apart by whose fault they are. All are `RouterError`s."""

from __future__ import annotations

from router_engine.errors import RouterError


class RouterInputError(RouterError):
    """The request asks for something that cannot be routed; the message says what would work."""


class RouterUnavailableError(RouterError):
    """The router's helper process is away or too slow; the same request may work later."""
