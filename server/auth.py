"""Who may do what: API keys for use and for administration, loopback where there are none."""

from __future__ import annotations

import asyncio
import hmac
from typing import Protocol
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from adapters_store.types import ApiKey, KeyKind
from server.errors import ForbiddenError, UnauthorizedError
from server.settings import Settings, SettingsError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEED = "an API key is needed: send Authorization: Bearer <key> or X-Api-Key: <key>"

# For the OpenAPI page only; the headers are read below.
_bearer = HTTPBearer(auto_error=False, description="An API key of kind use or admin.")
_header = APIKeyHeader(name="X-Api-Key", auto_error=False)


class KeyStore(Protocol):
    """What is needed of the store. Its methods block."""

    def has_keys(self) -> bool: ...

    def verify_key(self, secret: str) -> ApiKey | None: ...


class Auth:
    """Checks the key of a request. Without any key the server is for this machine alone."""

    def __init__(self, settings: Settings, store: KeyStore) -> None:
        self._store = store
        self._settings = settings
        admin_key = settings.admin_key
        self._admin_key = admin_key.get_secret_value().encode() if admin_key else None

    def require_safe_host(self) -> None:
        """Raises SettingsError when the server would listen to others without any key."""
        if not self._settings.is_loopback and not self._is_closed():
            raise SettingsError(
                f"host = {self._settings.host}: without an API key the server listens on "
                "127.0.0.1 only; make one with `adaptermix keys create --kind admin`, or set "
                "ADAPTERMIX_ADMIN_KEY"
            )

    @property
    def is_open(self) -> bool:
        """Whether there is no key, so that this machine may do everything. Blocks."""
        return not self._is_closed()

    async def role(self, request: Request) -> KeyKind:
        """The role of whoever sent this. Raises UnauthorizedError and ForbiddenError."""
        if not await asyncio.to_thread(self._is_closed):
            _require_own_page(request)
            return "admin"
        secret = _secret(request)
        if secret is None:
            raise UnauthorizedError(_NEED)
        if self._admin_key is not None and hmac.compare_digest(secret.encode(), self._admin_key):
            return "admin"
        key = await asyncio.to_thread(self._store.verify_key, secret)
        if key is None:
            raise UnauthorizedError("this API key is not known, or was revoked")
        return key.kind

    def _is_closed(self) -> bool:
        return self._admin_key is not None or self._store.has_keys()


async def require_use(
    request: Request,
    _bearer: object = Depends(_bearer),
    _header: object = Depends(_header),
) -> None:
    """Dependency of routes that any key opens."""
    await request.app.state.container.auth.role(request)


async def require_admin(
    request: Request,
    _bearer: object = Depends(_bearer),
    _header: object = Depends(_header),
) -> None:
    """Dependency of routes that only an admin key opens."""
    if await request.app.state.container.auth.role(request) != "admin":
        raise ForbiddenError("this route needs an admin key; the one you sent is for use only")


def _secret(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("x-api-key") or None


def _require_own_page(request: Request) -> None:
    """Keep web pages in the user's browser from speaking for the user (rebinding, cross-site)."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if host not in _LOOPBACK:
        raise ForbiddenError(
            f"Host {host!r}: without API keys the server answers to localhost and 127.0.0.1 only"
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).hostname not in _LOOPBACK:
        raise ForbiddenError(
            f"Origin {origin!r}: without API keys the server answers to pages of this machine only"
        )
