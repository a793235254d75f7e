"""Sample texts for routers that compare a prompt with them: as random as the adapters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adapters_store.types import SampleTexts
from router_engine.routers.centroids import (
    Centroid,
    CentroidService,
    Examples,
    MadeCentroid,
    Routable,
)
from router_engine.routers.encoder.encoder_client import EncoderClient

_EXAMPLES = 32  # of an adapter, as those in `examples/adapters` have
_TEXTS = "random"  # in the place of a digest of texts


class RandomTexts:
    """`CentroidStore` of adapters with given centroids and random examples around these."""

    def __init__(self, centroids: Mapping[str, Centroid]) -> None:
        self._centroids = centroids

    def sample_texts(self, digest: str) -> SampleTexts:
        """None: only their embeddings are asked for."""
        return SampleTexts("", ())

    def get_centroid(self, digest: str, encoder_digest: str, texts: str) -> Centroid:
        return self._centroids[digest]

    def get_examples(self, digest: str, encoder_digest: str, texts: str) -> NDArray[np.float32]:
        """Flat [_EXAMPLES * d]."""
        centroid = self._centroids[digest]
        generator = np.random.default_rng(int(texts.partition(" ")[2]))
        noise = generator.normal(size=(_EXAMPLES, len(centroid))) * len(centroid) ** -0.5
        return np.asarray(centroid + noise, dtype=np.float32).ravel()

    def put_centroid(
        self, digest: str, encoder_digest: str, made: MadeCentroid, examples: Examples | None
    ) -> None:
        """Nothing is made here."""

    def centroids(self, encoder_digest: str) -> dict[str, MadeCentroid]:
        return {}


async def centroid_service(
    client: EncoderClient, centroids: Mapping[str, Centroid]
) -> CentroidService:
    """A service that has put all of these centroids to the worker, and has examples for them."""
    service = CentroidService(RandomTexts(centroids), client, client)
    await service.ensure(
        Routable(digest, digest, f"{_TEXTS} {index}") for index, digest in enumerate(centroids)
    )
    return service
