"""Centroids as the store keeps them (bytes) and as the routers use them (numbers)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adapters_store.store import AdapterStore
from adapters_store.types import AdapterRecord, SampleTexts
from router_engine.routers.centroids import Centroid, Examples, MadeCentroid, Routable

_FLOATS = np.dtype("<f4")


def routable(record: AdapterRecord) -> Routable:
    """A stored adapter as routers see it that read text."""
    return Routable(record.digest, record.label, record.texts_digest)


class StoredCentroids:
    """A `CentroidStore` over the adapter store."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    def sample_texts(self, digest: str) -> SampleTexts:
        """See `CentroidStore.sample_texts`."""
        return self._store.sample_texts(digest)

    def get_centroid(self, digest: str, encoder_digest: str, texts: str) -> Centroid | None:
        """See `CentroidStore.get_centroid`."""
        data = self._store.get_centroid(digest, encoder_digest, texts)
        return None if data is None else _numbers(data)

    def get_examples(
        self, digest: str, encoder_digest: str, texts: str
    ) -> NDArray[np.float32] | None:
        """See `CentroidStore.get_examples`."""
        data = self._store.get_examples(digest, encoder_digest, texts)
        return None if data is None else _numbers(data)

    def put_centroid(
        self, digest: str, encoder_digest: str, made: MadeCentroid, examples: Examples | None
    ) -> None:
        """See `CentroidStore.put_centroid`."""
        vector = _data(made.vector)
        example_data = None if examples is None else _data(examples)
        self._store.put_centroid(digest, encoder_digest, made.texts, vector, example_data)

    def centroids(self, encoder_digest: str) -> Mapping[str, MadeCentroid]:
        """See `CentroidStore.centroids`."""
        return {
            digest: MadeCentroid(stored.texts, _numbers(stored.vector))
            for digest, stored in self._store.centroids(encoder_digest).items()
        }


def _numbers(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, _FLOATS).astype(np.float32)


def _data(numbers: NDArray[np.float32]) -> bytes:
    return numbers.astype(_FLOATS).tobytes()
