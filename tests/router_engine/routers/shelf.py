"""A store of sample texts in memory, for routers that read text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adapters_store.types import SampleTexts
from router_engine.routers.centroids import Centroid, Examples, MadeCentroid, Routable


class MemoryShelf:
    """A `CentroidStore` that notes whose texts were read, which is to say: computed with."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        """`texts` by adapter digest."""
        self.held = {digest: tuple(lines) for digest, lines in texts.items()}
        self.kept: dict[tuple[str, str], tuple[MadeCentroid, Examples | None]] = {}
        self.read: list[str] = []

    def routable(self, digest: str, label: str = "") -> Routable:
        return Routable(digest, label or digest, self._texts_digest(digest))

    def sample_texts(self, digest: str) -> SampleTexts:
        self.read.append(digest)
        return SampleTexts(self._texts_digest(digest), self.held[digest])

    def get_centroid(self, digest: str, encoder_digest: str, texts: str) -> Centroid | None:
        made = self._made(digest, encoder_digest, texts)
        return None if made is None else made[0].vector

    def get_examples(
        self, digest: str, encoder_digest: str, texts: str
    ) -> NDArray[np.float32] | None:
        made = self._made(digest, encoder_digest, texts)
        return None if made is None or made[1] is None else made[1].ravel()

    def put_centroid(
        self, digest: str, encoder_digest: str, made: MadeCentroid, examples: Examples | None
    ) -> None:
        self.kept[digest, encoder_digest] = (made, examples)

    def centroids(self, encoder_digest: str) -> Mapping[str, MadeCentroid]:
        return {key[0]: made for key, (made, _) in self.kept.items() if key[1] == encoder_digest}

    def _made(
        self, digest: str, encoder_digest: str, texts: str
    ) -> tuple[MadeCentroid, Examples | None] | None:
        made = self.kept.get((digest, encoder_digest))
        return made if made is not None and made[0].texts == texts else None

    def _texts_digest(self, digest: str) -> str:
        lines = "\n".join(self.held[digest]).encode()
        return hashlib.sha256(lines).hexdigest() if lines else ""
