"""The base model as an encoder of texts: the mean of its hidden states at the probe layer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router_engine.calls import PutCentroids
from router_engine.client.base import EngineClient
from router_engine.events import FinalEvent, FinishReason
from router_engine.info import EngineInfo
from router_engine.processes.supervisor import RunState
from router_engine.request import EngineRequest, Reports, SamplingSpec
from router_engine.routers.centroids import ANY_THREAD, ThreadRunner
from router_engine.routers.encoder.encoder_messages import Info
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.scoring import Window
from server.errors import InputError
from server.generation.tokenization import Tokenization

_AT_ONCE = 8  # texts in the engine
_PARTS = 4
_FEWEST = 2  # tokens: the first has no say
_FORM = "mean and mean square over quarters"


class HiddenStateEncoder:
    """A `CentroidEncoder` for the routers that read hidden states: it runs in the engine.

    A text becomes the means of e and of e^2 over its quarters, e being the mean hidden state of its
    first quarter, its first half, three quarters, all of it: what a request that is routed like
    it would show on the way. See `routers.hidden_mean`.
    """

    def __init__(
        self,
        engine: EngineClient,
        info: EngineInfo,
        tokenization: Tokenization,
        routers: Sequence[str],
        threads: ThreadRunner = ANY_THREAD,
    ) -> None:
        """`routers`: those that are given the centroids. `threads`: they tokenize."""
        self._threads = threads
        self._engine = engine
        self._info = info
        self._tokenization = tokenization
        self._routers = tuple(routers)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def is_connected(self) -> bool:
        """Whether the engine takes requests."""
        return self._engine.state is RunState.READY

    async def connected(self) -> int:
        """Another number for each engine process, since a new one has no centroids."""
        return self._engine.restarts + 1

    async def info(self) -> Info:
        """The name and width of the embeddings, which centroids are kept under."""
        return Info(0, f"{self._info.probe} {_FORM}", 2 * self._info.hidden_size)

    async def embed(self, texts: Sequence[str], *, window: Window = "head") -> NDArray[np.float32]:
        """Rows [texts, 2 hidden]. Raises RouterInputError for a text of fewer than two tokens."""
        rows = await asyncio.gather(*(self._embedding(text, window) for text in texts))
        return np.stack(rows)

    async def put_centroids(self, centroids: Mapping[str, ArrayLike]) -> None:
        """Hand what `embed` made, or means of it, to the engine."""
        vectors = {
            digest: np.asarray(vector, np.float64).tolist() for digest, vector in centroids.items()
        }
        for router in self._routers:
            await self._engine.call(PutCentroids(router, vectors))

    async def _embedding(self, text: str, window: Window) -> NDArray[np.float32]:
        room = self._info.longest() - 1
        read = self._tokenization.encode_first
        if window == "tail":
            read = self._tokenization.encode_last
        try:
            ids = await self._threads.run(partial(read, text, room))
        except InputError as error:
            raise RouterInputError(f"text {text!r}: {error}") from error
        if len(ids) < _FEWEST:
            raise RouterInputError(f"sample text {text!r} has fewer than two tokens: too few")
        async with self._turns:  # one after the other: each finds the one before in the cache
            means = [await self._mean(ids[: _part(len(ids), n)]) for n in range(1, _PARTS + 1)]
        rows = np.stack(means)
        return np.concatenate((rows.mean(axis=0), np.square(rows).mean(axis=0)))

    async def _mean(self, ids: tuple[int, ...]) -> NDArray[np.float32]:
        request = EngineRequest(
            uuid.uuid4().hex,
            ids,
            SamplingSpec(max_new_tokens=1),
            is_background=True,
            reads_hidden_states=True,
            reports=Reports(hidden_mean=True),
        )
        async with aclosing(self._engine.submit(request)) as events:
            async for event in events:
                if isinstance(event, FinalEvent):
                    return _hidden(event)
        raise RouterUnavailableError("the engine ended a text without a final event")


def _part(length: int, number: int) -> int:
    """The length of the first `number` quarters."""
    return max(_FEWEST, length * number // _PARTS)


def _hidden(event: FinalEvent) -> NDArray[np.float32]:
    if event.reason is not FinishReason.LENGTH or not event.hidden:
        raise RouterUnavailableError(f"a sample text was not read: {event.error or event.reason}")
    return np.asarray(event.hidden, np.float32)
