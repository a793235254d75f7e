"""Manifests by digest, parsed once: they never change, and every request resolves an adapter."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select

from adapters_store.manifest import manifest_from_json
from adapters_store.metadata.schema import BLOBS
from adapters_store.types import AdapterManifest

_BATCH = 500  # parameters of one statement


class ManifestCache:
    """The most recently used manifests; the rest is read from the database."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._manifests: OrderedDict[str, AdapterManifest] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, connection: Connection, digests: Iterable[str]) -> Mapping[str, AdapterManifest]:
        """Manifests of recorded digests, read in the caller's transaction."""
        found: dict[str, AdapterManifest] = {}
        with self._lock:
            for digest in set(digests):
                if digest in self._manifests:
                    self._manifests.move_to_end(digest)
                    found[digest] = self._manifests[digest]
        missing = sorted(set(digests) - found.keys())
        for start in range(0, len(missing), _BATCH):
            wanted = BLOBS.c.digest.in_(missing[start : start + _BATCH])
            rows = connection.execute(select(BLOBS.c.digest, BLOBS.c.manifest).where(wanted))
            found.update({row.digest: manifest_from_json(row.manifest.encode()) for row in rows})
        self._keep({digest: found[digest] for digest in missing})
        return found

    def _keep(self, manifests: Mapping[str, AdapterManifest]) -> None:
        with self._lock:
            self._manifests.update(manifests)
            while len(self._manifests) > self._capacity:
                self._manifests.popitem(last=False)
