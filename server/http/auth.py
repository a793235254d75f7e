"""API keys for use and for administration; loopback does without where none are asked for."""

from __future__ import annotations

import hmac
import re
from functools import partial
from typing import Protocol

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers

from adapters_store.types import ApiKey, KeyKind
from server.errors import InsufficientScopeError, InvalidKeyError
from server.settings import Settings, SettingsError
from server.threads import Threads

_OWN = r"(?:127\.0\.0\.1|localhost|\[::1\])(?::([0-9]{0,5}))?"
_OWN_HOST = re.compile(_OWN, re.IGNORECASE | re.ASCII)
_OWN_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_OWN}", re.IGNORECASE | re.ASCII)
_LAST_PORT = 65535
_NEED = "an API key is needed: send Authorization: Bearer <key> or X-Api-Key: <key>"
_THREADS = 2  # of lookups of keys: they wait for the database, and for nothing else

_bearer = HTTPBearer(auto_error=False, description="An API key of kind use or admin.")
_header = APIKeyHeader(name="X-Api-Key", auto_error=False)


class KeyStore(Protocol):
    """The part of the store that keys need. Its methods block."""

    def has_keys(self) -> bool: ...

    def verify_key(self, secret: str) -> ApiKey | None: ...


class Auth:
    """Checks the key of a request.

    Whether keys are asked for is decided once, at the start: everywhere but on loopback, and there
    too if a key was given or the store held one. Keys that are made or revoked later change who
    gets in, and never whether anybody does without one.
    """

    def __init__(self, settings: Settings, store: KeyStore) -> None:
        self._store = store
        self._settings = settings
        admin_key = settings.admin_key
        self._admin_key = admin_key.get_secret_value().encode() if admin_key else None
        self._has_keys = self._admin_key is not None or store.has_keys()
        self._lookups = Threads("auth", _THREADS, settings.lookup_patience)

    def require_safe_host(self) -> None:
        """Raises SettingsError where others are listened to and nobody could have a key."""
        if not self._settings.is_loopback and not self._has_keys:
            raise SettingsError(
                f"host = {self._settings.host}: without an API key the server listens on "
                "127.0.0.1 only; make one with `adaptermix keys create --kind admin`, or set "
                "ADAPTERMIX_ADMIN_KEY"
            )

    @property
    def is_open(self) -> bool:
        """Whether this machine may do everything without a key."""
        return self._settings.is_loopback and not self._has_keys

    def require_own_page(self, headers: Headers) -> None:
        """Keep web pages in the user's browser from speaking for the user (rebinding, cross-site).

        Raises InsufficientScopeError.
        """
        host = headers.get("host", "")
        if not _is_own(_OWN_HOST, host):
            raise InsufficientScopeError(
                f"Host {host[:80]!r}: without API keys the server answers to localhost and "
                "127.0.0.1 only"
            )
        origin = headers.get("origin")
        if origin is not None and not _is_own(_OWN_ORIGIN, origin):
            raise InsufficientScopeError(
                f"Origin {origin[:80]!r}: without API keys the server answers to pages of this "
                "machine only"
            )

    async def role(self, headers: Headers) -> KeyKind:
        """The role of whoever sent this. Raises InvalidKeyError."""
        secret = _secret(headers)
        if secret is None:
            raise InvalidKeyError(_NEED)
        if self._admin_key is not None and hmac.compare_digest(secret.encode(), self._admin_key):
            return "admin"
        key = await self._lookups.run(partial(self._store.verify_key, secret))
        if key is None:
            raise InvalidKeyError("this API key is not known, or was revoked")
        return key.kind

    def close(self) -> None:
        """End the threads that look up keys."""
        self._lookups.close()


async def documented_key(
    _bearer: object = Depends(_bearer), _header: object = Depends(_header)
) -> None:
    """Dependency of routes that take a key, for their OpenAPI page; the door has looked at it."""


def _secret(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def _is_own(pattern: re.Pattern[str], header: str) -> bool:
    """Whether this is a name of this machine, and nothing else that readers could take apart."""
    match = pattern.fullmatch(header)
    return match is not None and int(match[1] or 0) <= _LAST_PORT
