"""API keys: shown once, stored hashed."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Any, get_args

from sqlalchemy import Connection, Row, delete, insert, select, update

from adapters_store.errors import KeyNotFoundError, StoreError
from adapters_store.metadata.database import Database
from adapters_store.metadata.schema import API_KEYS
from adapters_store.types import ApiKey, KeyKind

_SECRET = re.compile(r"amx_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_MAX_LABEL = 256


class ApiKeys:
    """Secrets are 256 random bits, so a plain sha256 is as good as a slow hash."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, label: str, kind: KeyKind) -> tuple[ApiKey, str]:
        """A new key and its secret, `amx_<id>_<random>`, which is never shown again."""
        if kind not in get_args(KeyKind):
            raise StoreError(f"key kind {kind!r} does not exist; use one of {get_args(KeyKind)}")
        if not label or len(label) > _MAX_LABEL:
            raise StoreError(f"a key needs a label of 1 to {_MAX_LABEL} characters")
        key = ApiKey(secrets.token_hex(8), label, kind, time.time())
        secret = f"amx_{key.id}_{secrets.token_urlsafe(32)}"
        row = {"id": key.id, "label": label, "kind": kind, "created_at": key.created_at}
        insertion = insert(API_KEYS).values(row | {"secret_hash": _hash(secret)})
        self._database.writing(lambda connection: connection.execute(insertion))
        return key, secret

    def verify(self, secret: str) -> ApiKey | None:
        """The key that a secret belongs to; None when there is none or it is revoked."""
        match = _SECRET.fullmatch(secret)
        if match is None:
            return None
        query = select(API_KEYS).where(API_KEYS.c.id == match[1])
        row = self._database.reading(lambda connection: connection.execute(query).first())
        if row is None or row.revoked_at is not None:
            return None
        return _key(row) if hmac.compare_digest(row.secret_hash, _hash(secret)) else None

    def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        query = select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.id)
        rows = self._database.reading(lambda connection: connection.execute(query).all())
        return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> ApiKey:
        """From now on the key opens nothing. Raises KeyNotFoundError."""
        is_key = API_KEYS.c.id == key_id
        in_force = update(API_KEYS).where(is_key, API_KEYS.c.revoked_at.is_(None))

        def revoke(connection: Connection) -> Row[Any] | None:
            connection.execute(in_force.values(revoked_at=time.time()))
            return connection.execute(select(API_KEYS).where(is_key)).first()

        row = self._database.writing(revoke)
        if row is None:
            raise KeyNotFoundError(key_id)
        return _key(row)

    def discard(self, key_id: str) -> None:
        """As if the key had never been made. Raises KeyNotFoundError."""
        deletion = delete(API_KEYS).where(API_KEYS.c.id == key_id)
        if not self._database.writing(lambda connection: connection.execute(deletion).rowcount):
            raise KeyNotFoundError(key_id)

    def exist(self) -> bool:
        """Whether any key is in force."""
        query = select(API_KEYS.c.id).where(API_KEYS.c.revoked_at.is_(None)).limit(1)
        return self._database.reading(lambda connection: connection.scalar(query)) is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(row.id, row.label, row.kind, row.created_at, row.revoked_at)
