"""Centroids of adapters: the mean embedding of their sample texts, computed once per encoder.

c_j = mean_i E(text_ij), not normalised. Texts too long for the encoder are read from their
beginning, as the paper's code reads them, whatever window a request routes with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router_engine.routers.encoder.messages import Info
from router_engine.routers.errors import RouterInputError
from router_engine.routers.scoring import Window

Centroid = NDArray[np.float32]

_PUT_AT_ONCE = 1024  # centroids of one message
_COMPUTED_AT_ONCE = 4  # adapters whose texts are with the encoder at one time


class CentroidStore(Protocol):
    """What is kept of an adapter for routing. Called from worker threads."""

    def texts(self, digest: str) -> Sequence[str]:
        """Sample texts, empty when it was published without."""
        ...

    def get_centroid(self, digest: str, encoder_digest: str) -> Sequence[float] | None:
        """A centroid [d] computed earlier with this encoder."""
        ...

    def put_centroid(self, digest: str, encoder_digest: str, vector: Sequence[float]) -> None:
        """Keep a centroid [d]; an equal one may be there already."""
        ...


class CentroidEncoder(Protocol):
    """What the service needs of `EncoderClient`."""

    async def connected(self) -> int: ...

    async def info(self) -> Info: ...

    async def embed(self, texts: Sequence[str], *, window: Window = ...) -> NDArray[np.float32]: ...

    async def put_centroids(self, centroids: Mapping[str, Centroid]) -> None: ...


def centroid(embeddings: ArrayLike) -> Centroid:
    """Embeddings [n, d] -> their mean [d]; raises RouterInputError for none or not finite."""
    matrix = np.asarray(embeddings, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0 or not np.isfinite(matrix).all():
        raise RouterInputError(
            f"a centroid needs one or more finite embeddings, not shape {matrix.shape}"
        )
    return np.asarray(matrix.mean(axis=0), dtype=np.float32)


class _NoTextsError(Exception):
    """An adapter cannot have a centroid."""


class CentroidService:
    """Sees to it that the encoder worker has the centroids that a request needs.

    Owns what is known of centroids in this process: those in memory, and which of them the
    present worker has. Used from one asyncio loop.
    """

    def __init__(self, store: CentroidStore, encoder: CentroidEncoder) -> None:
        self._store = store
        self._encoder = encoder
        self._known: dict[str, Centroid] = {}
        self._put: set[str] = set()  # those that the worker of `_connection` has
        self._connection = 0
        self._encoder_digest = ""
        self._greeting = asyncio.Lock()
        self._computing = asyncio.Semaphore(_COMPUTED_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[Centroid]] = {}

    async def ensure(self, adapters: Mapping[str, str]) -> None:
        """Let the worker have the centroid of every adapter (digest -> the name to show).

        Computes and stores those that are missing. Raises RouterInputError naming the adapters
        that have no texts, RouterUnavailableError when the worker is away.
        """
        await self.refresh()
        missing = [digest for digest in adapters if digest not in self._put]
        if not missing:
            return
        connection = self._connection
        found = await asyncio.gather(*map(self._centroid, missing), return_exceptions=True)
        vectors: dict[str, Centroid] = {}
        without: list[str] = []
        for digest, result in zip(missing, found, strict=True):
            if isinstance(result, _NoTextsError):
                without.append(adapters[digest])
            elif isinstance(result, BaseException):
                raise result
            else:
                vectors[digest] = result
        if without:
            raise RouterInputError(
                f"{', '.join(without)} cannot be routed by similarity: there are no sample texts "
                "to make a centroid of; publish again with `texts`"
            )
        await self._put_all(vectors, connection)

    async def refresh(self) -> None:
        """After a restart of the worker, put there what the last one had; else do nothing."""
        if await self._encoder.connected() == self._connection:
            return
        async with self._greeting:
            connection = await self._encoder.connected()
            if connection == self._connection:
                return
            digest = (await self._encoder.info()).digest
            if digest != self._encoder_digest:
                self._known.clear()
                self._encoder_digest = digest
            self._put.clear()
            self._connection = connection
            await self._put_all(dict(self._known), connection)

    def forget(self, digest: str) -> None:
        """Drop a deleted adapter's centroid from memory."""
        self._known.pop(digest, None)
        self._put.discard(digest)

    async def _put_all(self, vectors: Mapping[str, Centroid], connection: int) -> None:
        items = list(vectors.items())
        for start in range(0, len(items), _PUT_AT_ONCE):
            part = dict(items[start : start + _PUT_AT_ONCE])
            await self._encoder.put_centroids(part)
            if connection == self._connection:
                self._put.update(part)

    async def _centroid(self, digest: str) -> Centroid:
        """From memory, or made by one task whoever else waits for it or gives up."""
        if digest in self._known:
            return self._known[digest]
        task = self._tasks.get(digest)
        if task is None:
            task = asyncio.create_task(self._make(digest, self._encoder_digest))
            self._tasks[digest] = task
            task.add_done_callback(lambda done: self._finish(digest, done))
        return await asyncio.shield(task)

    def _finish(self, digest: str, task: asyncio.Task[Centroid]) -> None:
        del self._tasks[digest]
        if not task.cancelled():
            task.exception()  # those who still wait get it; nobody else has to

    async def _make(self, digest: str, encoder_digest: str) -> Centroid:
        stored = await asyncio.to_thread(self._store.get_centroid, digest, encoder_digest)
        if stored is not None:
            vector = np.asarray(stored, dtype=np.float32)
        else:
            vector = await self._compute(digest, encoder_digest)
        if encoder_digest == self._encoder_digest:
            self._known[digest] = vector
        return vector

    async def _compute(self, digest: str, encoder_digest: str) -> Centroid:
        texts = await asyncio.to_thread(self._store.texts, digest)
        if not texts:
            raise _NoTextsError
        async with self._computing:
            vector = centroid(await self._encoder.embed(texts, window="head"))
        await asyncio.to_thread(self._store.put_centroid, digest, encoder_digest, vector.tolist())
        return vector
