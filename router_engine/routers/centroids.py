"""Centroids and examples of adapters' sample texts, computed once per encoder.

c_j = mean_i E(text_ij), not normalised; the examples are some of those E(text_ij). Texts too long
for the encoder are read from their beginning, as the paper's code reads them, whatever window a
request routes with. Both hang on the texts' digest: other texts, other centroid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapters_store.errors import StoreError
from adapters_store.types import SampleTexts
from router_engine.errors import RouterError
from router_engine.routers.encoder.encoder_messages import Info
from router_engine.routers.errors import RouterInputError
from router_engine.routers.knn import example_indices
from router_engine.routers.scoring import Window

Centroid = NDArray[np.float32]  # [d]
Examples = NDArray[np.float32]  # [n, d]

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

_KEEP_SECONDS = 1.0
_PUT_AT_ONCE = 128  # centroids of one message: packing more would hold up the event loop
_EXAMPLES_AT_ONCE = 64  # adapters whose examples are in one message: 6 MB where d is 384
_COMPUTED_AT_ONCE = 4  # adapters whose texts are with the encoder at one time


@dataclass(frozen=True, slots=True)
class Routable:
    """An adapter as routers see it that read text. `texts` is "" where it has no sample texts."""

    digest: str
    label: str  # the name to show
    texts: str  # digest of its sample texts


@dataclass(frozen=True, slots=True)
class MadeCentroid:
    """A centroid, and the digest of the texts that it was made of."""

    texts: str
    vector: Centroid


class CentroidStore(Protocol):
    """What is kept of an adapter for routing. Called from worker threads."""

    def sample_texts(self, digest: str) -> SampleTexts:
        """The sample texts in force, maybe none."""
        ...

    def get_centroid(self, digest: str, encoder_digest: str, texts: str) -> Centroid | None:
        """The centroid made of these texts with this encoder."""
        ...

    def get_examples(
        self, digest: str, encoder_digest: str, texts: str
    ) -> NDArray[np.float32] | None:
        """The examples made of these texts with this encoder, one after the other [n * d]."""
        ...

    def put_centroid(
        self, digest: str, encoder_digest: str, made: MadeCentroid, examples: Examples | None
    ) -> None:
        """Keep what was made of an adapter's texts, in place of what was made of others."""
        ...

    def centroids(self, encoder_digest: str) -> Mapping[str, MadeCentroid]:
        """Every centroid made with this encoder, by the adapter's digest."""
        ...


class ThreadRunner(Protocol):
    """Runs blocking work off the event loop."""

    async def run(self, work: Callable[[], Value]) -> Value:
        """What `work` returns, or raises."""
        ...


class AnyThread:
    """The threads that the event loop has for everybody."""

    async def run(self, work: Callable[[], Value]) -> Value:
        """See `ThreadRunner.run`."""
        return await asyncio.to_thread(work)


ANY_THREAD = AnyThread()


class CentroidEncoder(Protocol):
    """Makes embeddings and holds centroids, as `EncoderClient` does."""

    @property
    def is_connected(self) -> bool: ...

    async def connected(self) -> int: ...

    async def info(self) -> Info: ...

    async def embed(self, texts: Sequence[str], *, window: Window = ...) -> NDArray[np.float32]: ...

    async def put_centroids(self, centroids: Mapping[str, Centroid]) -> None: ...


class ExampleHolder(Protocol):
    """Holds examples, as `EncoderClient` does."""

    async def put_examples(self, examples: Mapping[str, Examples]) -> None: ...


def centroid(embeddings: ArrayLike) -> Centroid:
    """Embeddings [n, d] -> their mean [d]; raises RouterInputError for none or not finite."""
    matrix = np.asarray(embeddings, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0 or not np.isfinite(matrix).all():
        raise RouterInputError(
            f"a centroid needs one or more finite embeddings, not shape {matrix.shape}"
        )
    return np.asarray(matrix.mean(axis=0), dtype=np.float32)


async def _kept(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except (StoreError, OSError) as error:
        logger.warning("a centroid was not stored: it is made again after a restart: %s", error)


class _NoTextsError(RouterInputError):
    """An adapter cannot have a centroid."""

    def __init__(self) -> None:
        super().__init__("a candidate has no sample texts")


class CentroidService:
    """Sees to it that the encoder worker has what a request needs of its candidates' texts.

    Owns what is known of centroids in this process: those in memory, and which of them the
    present worker has. Examples are not kept here. Used from one asyncio loop.
    """

    def __init__(
        self,
        store: CentroidStore,
        encoder: CentroidEncoder,
        examples: ExampleHolder | None = None,
        *,
        readers: ThreadRunner = ANY_THREAD,
        writers: ThreadRunner = ANY_THREAD,
    ) -> None:
        """`examples` None: only centroids are kept. Requests wait for `readers`, and not for
        `writers`: a store may be locked for writers alone."""
        self._readers = readers
        self._writers = writers
        self._keeping: set[asyncio.Task[None]] = set()
        self._store = store
        self._encoder = encoder
        self._holder = examples
        self._known: dict[str, MadeCentroid] = {}  # by the adapter's digest
        self._put: dict[str, str] = {}  # what the worker of `_connection` has: adapter -> texts
        self._connection = 0
        self._encoder_digest = ""
        self._greeting = asyncio.Lock()
        self._computing = asyncio.Semaphore(_COMPUTED_AT_ONCE)
        self._tasks: dict[Routable, asyncio.Task[MadeCentroid]] = {}

    @property
    def is_connected(self) -> bool:
        """Whether the worker is there now."""
        return self._encoder.is_connected

    async def connected(self) -> None:
        """Wait for the worker, which may be starting. Raises RouterUnavailableError."""
        await self._encoder.connected()

    async def ensure(self, adapters: Iterable[Routable]) -> None:
        """Let the worker have the centroid of every adapter.

        Computes and stores those that are missing. Raises RouterInputError naming the adapters
        that have no texts, RouterUnavailableError when the worker is away.
        """
        await self.refresh()
        missing = [one for one in adapters if self._put.get(one.digest) != one.texts]
        if not missing:
            return
        connection = self._connection
        results = await asyncio.gather(*map(self._centroid, missing), return_exceptions=True)
        made: dict[str, MadeCentroid] = {}
        without: list[str] = []
        for one, result in zip(missing, results, strict=True):
            if isinstance(result, _NoTextsError):
                without.append(one.label)
            elif isinstance(result, BaseException):
                raise result
            else:
                made[one.digest] = result
        if without:
            raise RouterInputError(
                f"{', '.join(without)} cannot be routed by similarity: there are no sample texts "
                "to make a centroid of; send them (`adaptermix adapters texts`), or publish again "
                "with `texts`"
            )
        await self._put_all(made, connection)

    async def ready(self, adapters: Iterable[Routable]) -> dict[str, Centroid]:
        """Centroids that there are now, by digest. Computes none and waits for no worker."""
        if self.is_connected:
            with suppress(RouterError):  # it went away just now
                await self.refresh()
        wanted = {one.digest: one.texts for one in adapters if one.texts}
        encoder_digest = self._encoder_digest
        if encoder_digest and any(not self._is_known(*item) for item in wanted.items()):
            stored = await self._readers.run(partial(self._store.centroids, encoder_digest))
            if encoder_digest == self._encoder_digest:
                current = {
                    key: made for key, made in stored.items() if made.texts == wanted.get(key)
                }
                self._known.update(current)
        return {
            digest: self._known[digest].vector
            for digest, texts in wanted.items()
            if self._is_known(digest, texts)
        }

    def texts_of(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Digests of the texts that the adapters' centroids were made of, after `ensure`."""
        return tuple(self._made(digest).texts for digest in digests)

    async def put_examples(self, digests: Sequence[str]) -> None:
        """Let the worker have the examples of adapters that `ensure` was called for."""
        for start in range(0, len(digests), _EXAMPLES_AT_ONCE):
            part = digests[start : start + _EXAMPLES_AT_ONCE]
            examples = await asyncio.gather(*map(self._examples, part))
            if self._holder is not None:
                await self._holder.put_examples(dict(examples))

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
        self._put.pop(digest, None)

    def _made(self, digest: str) -> MadeCentroid:
        if digest not in self._known:
            raise RouterError(f"the adapter {digest} was deleted while it was routed to")
        return self._known[digest]

    def _is_known(self, digest: str, texts: str) -> bool:
        return digest in self._known and self._known[digest].texts == texts

    async def _put_all(self, made: Mapping[str, MadeCentroid], connection: int) -> None:
        items = list(made.items())
        for start in range(0, len(items), _PUT_AT_ONCE):
            part = dict(items[start : start + _PUT_AT_ONCE])
            await self._encoder.put_centroids({key: one.vector for key, one in part.items()})
            if connection == self._connection:
                self._put.update((key, one.texts) for key, one in part.items())

    async def _centroid(self, adapter: Routable) -> MadeCentroid:
        """From memory, or made by one task whoever else waits for it or gives up."""
        if not adapter.texts:
            raise _NoTextsError
        if self._is_known(adapter.digest, adapter.texts):
            return self._known[adapter.digest]
        task = self._tasks.get(adapter)
        if task is None:
            task = asyncio.create_task(self._make(adapter, self._encoder_digest))
            self._tasks[adapter] = task
            task.add_done_callback(lambda done: self._finish(adapter, done))
        return await asyncio.shield(task)

    def _finish(self, adapter: Routable, task: asyncio.Task[MadeCentroid]) -> None:
        del self._tasks[adapter]
        if not task.cancelled():
            task.exception()  # those who still wait get it; nobody else has to

    async def _make(self, adapter: Routable, encoder_digest: str) -> MadeCentroid:
        get = self._store.get_centroid
        stored = await self._readers.run(
            partial(get, adapter.digest, encoder_digest, adapter.texts)
        )
        if stored is not None:
            made = MadeCentroid(adapter.texts, stored)
        else:
            made, _ = await self._compute(adapter.digest, encoder_digest)
        if encoder_digest == self._encoder_digest:
            self._known[adapter.digest] = made
        return made

    async def _compute(self, digest: str, encoder_digest: str) -> tuple[MadeCentroid, Examples]:
        """Of the texts in force now, which may be newer than those that were asked for."""
        sample = await self._readers.run(partial(self._store.sample_texts, digest))
        if not sample.texts:
            raise _NoTextsError
        async with self._computing:
            embeddings = await self._encoder.embed(sample.texts, window="head")
        made = MadeCentroid(sample.digest, centroid(embeddings))
        examples = embeddings[example_indices(len(embeddings))]
        stored = None if self._holder is None else examples
        await self._keep(partial(self._store.put_centroid, digest, encoder_digest, made, stored))
        return made, examples

    async def _keep(self, put: Callable[[], None]) -> None:
        """Store what was made. A store that is locked or full costs whoever waits a moment only."""
        task = asyncio.create_task(_kept(self._writers.run(put)))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        await asyncio.wait({task}, timeout=_KEEP_SECONDS)

    async def _examples(self, digest: str) -> tuple[str, Examples]:
        """(digest of the texts, examples), computed where only a centroid was kept."""
        encoder_digest, centroid = self._encoder_digest, self._made(digest)
        get = self._store.get_examples
        stored = await self._readers.run(partial(get, digest, encoder_digest, centroid.texts))
        if stored is not None:
            return centroid.texts, stored.reshape(-1, len(centroid.vector))
        made, examples = await self._compute(digest, encoder_digest)
        if encoder_digest == self._encoder_digest:
            self._known[digest] = made
        return made.texts, examples
