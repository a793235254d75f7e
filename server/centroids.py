"""Centroids as the store keeps them (bytes) and as the routers use them (numbers)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapters_store.store import AdapterStore

_FLOATS = np.dtype("<f4")


class StoredCentroids:
    """A `CentroidStore` over the adapter store."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    def texts(self, digest: str) -> Sequence[str]:
        """See `CentroidStore.texts`."""
        return self._store.texts(digest)

    def get_centroid(self, digest: str, encoder_digest: str) -> Sequence[float] | None:
        """See `CentroidStore.get_centroid`."""
        data = self._store.get_centroid(digest, encoder_digest)
        return None if data is None else np.frombuffer(data, _FLOATS).tolist()

    def put_centroid(self, digest: str, encoder_digest: str, vector: Sequence[float]) -> None:
        """See `CentroidStore.put_centroid`."""
        self._store.put_centroid(digest, encoder_digest, np.asarray(vector, _FLOATS).tobytes())
