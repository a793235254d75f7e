"""Centroids: computed once, stored, put with the worker, and put again after its restart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from router_engine.routers.centroids import CentroidService, centroid
from router_engine.routers.encoder.client import EncoderClient
from router_engine.routers.encoder.process import EncoderProcess
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.errors import RouterInputError

TEXTS = {
    "sha256:math": ["3 + 4 = 7", "what is 9 * 9?", "a b c d " * 40],
    "sha256:code": ["def f(x):", "return x"],
    "sha256:bare": [],
}
LABELS = {"sha256:math": "math@1", "sha256:code": "code@2"}


class Shelf:
    """A store in memory that notes what it was asked."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Sequence[float]] = {}
        self.read: list[str] = []

    def texts(self, digest: str) -> Sequence[str]:
        self.read.append(digest)
        return TEXTS[digest]

    def get_centroid(self, digest: str, encoder_digest: str) -> Sequence[float] | None:
        return self.kept.get((digest, encoder_digest))

    def put_centroid(self, digest: str, encoder_digest: str, vector: Sequence[float]) -> None:
        self.kept[digest, encoder_digest] = vector


def test_a_centroid_is_the_plain_mean() -> None:
    assert centroid([[1.0, 0.0], [0.0, 3.0]]).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("embeddings", [np.zeros((0, 4)), [[np.nan, 1.0]], [1.0, 2.0]])
def test_a_centroid_of_nothing_is_refused(embeddings: object) -> None:
    with pytest.raises(RouterInputError, match="one or more finite embeddings"):
        centroid(np.asarray(embeddings))


def test_missing_ones_are_computed_stored_and_put(endpoint: str, encoder_dir: Path) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint) as client:
            await CentroidService(shelf, client).ensure(LABELS)
            assert len(await client.route("3 + 4", list(LABELS), {})) == 2

    shelf = Shelf()
    asyncio.run(talk())
    encoder = SentenceEncoder(encoder_dir)
    for digest in LABELS:
        expected = encoder.encode(TEXTS[digest], "head").mean(axis=0)
        assert shelf.kept[digest, encoder.digest] == pytest.approx(expected, abs=1e-6)


def test_each_is_computed_once(endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint) as client:
            service = CentroidService(shelf, client)
            await asyncio.gather(*(service.ensure(LABELS) for _ in range(5)))
            await CentroidService(shelf, client).ensure(LABELS)

    shelf = Shelf()
    asyncio.run(talk())
    assert sorted(shelf.read) == sorted(LABELS)


def test_an_adapter_without_texts_is_named(endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint) as client:
            service = CentroidService(Shelf(), client)
            with pytest.raises(RouterInputError, match=r"^bare@1 cannot be routed .*`texts`"):
                await service.ensure({**LABELS, "sha256:bare": "bare@1"})

    asyncio.run(talk())


@pytest.mark.slow
def test_a_restarted_worker_gets_them_again(worker: EncoderProcess, endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint) as client:
            service = CentroidService(shelf, client)
            await service.ensure(LABELS)
            await asyncio.to_thread(worker.restart)
            while client.connections < 2:
                await asyncio.sleep(0)
            await service.refresh()
            assert len(await client.route("3 + 4", list(LABELS), {})) == 2

    shelf = Shelf()
    asyncio.run(talk())
    assert sorted(shelf.read) == sorted(LABELS)


def test_a_forgotten_one_is_brought_from_the_store(endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint) as client:
            service = CentroidService(shelf, client)
            await service.ensure(LABELS)
            service.forget("sha256:math")
            await service.ensure(LABELS)

    shelf = Shelf()
    asyncio.run(talk())
    assert sorted(shelf.read) == sorted(LABELS)
