"""Manifests by digest, parsed once: they never change, and every request resolves an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from adapters_store.manifest import manifest_from_json
from adapters_store.metadata.recent import Recent
from adapters_store.metadata.schema import BLOBS
from adapters_store.types import AdapterManifest

_BATCH = 500  # parameters of one statement


class ManifestCache:
    """The most recently used manifests; the rest is read from the database."""

    def __init__(self) -> None:
        self._manifests: Recent[str, AdapterManifest] = Recent()

    def get(self, connection: Connection, digests: Iterable[str]) -> Mapping[str, AdapterManifest]:
        """Manifests of recorded digests, read in the caller's transaction."""
        wanted = set(digests)
        cached = {digest: self._manifests.get(digest) for digest in wanted}
        manifests = {key: manifest for key, manifest in cached.items() if manifest is not None}
        missing = sorted(wanted - manifests.keys())
        for start in range(0, len(missing), _BATCH):
            batch = BLOBS.c.digest.in_(missing[start : start + _BATCH])
            rows = connection.execute(select(BLOBS.c.digest, BLOBS.c.manifest).where(batch))
            for row in rows:
                manifests[row.digest] = manifest_from_json(row.manifest.encode())
        for digest in missing:
            self._manifests.put(digest, manifests[digest])
        return manifests
