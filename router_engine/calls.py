"""Calls of an engine: whatever may be asked of one beside requests, each with its answer's type.

A call crosses the process border as data and carries its verb: what it does to the engine there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar, get_args

import msgspec

from adapters_store.types import ResolvedMixture
from router_engine.info import AdapterResidency, MergedState
from router_engine.stats import EngineStats

Answer = TypeVar("Answer", covariant=True)


class CalledEngine(Protocol):
    """The part of `router_engine.engine.Engine` that calls use, without importing torch."""

    def load(self, digest: str) -> Future[AdapterResidency]: ...

    def pin(self, digest: str, *, pinned: bool) -> Future[AdapterResidency]: ...

    def unload(self, digest: str) -> int: ...

    def residency(self) -> tuple[AdapterResidency, ...]: ...

    def merge(self, mixture: ResolvedMixture | None) -> Future[MergedState]: ...

    def merged(self) -> MergedState: ...

    def stats(self) -> EngineStats: ...

    def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None: ...


class EngineCall(msgspec.Struct, Generic[Answer], frozen=True):
    """A question to an engine, or an order that it acknowledges."""

    def run(self, engine: CalledEngine) -> Answer | Future[Answer]:
        """Ask the engine, between two steps and on its thread; it may answer in a later one."""
        raise NotImplementedError


class LoadAdapter(EngineCall[AdapterResidency], frozen=True, tag=True):
    """Bring an adapter to the device. Raises AdapterLoadError, RequestRefusedError."""

    digest: str

    def run(self, engine: CalledEngine) -> Future[AdapterResidency]:
        return engine.load(self.digest)


class Pin(EngineCall[AdapterResidency], frozen=True, tag=True):
    """Load an adapter and keep it on the device, or let it go again."""

    digest: str
    pinned: bool

    def run(self, engine: CalledEngine) -> Future[AdapterResidency]:
        return engine.pin(self.digest, pinned=self.pinned)


class Unload(EngineCall[int], frozen=True, tag=True):
    """Drop an adapter from device and host; the answer is the bytes freed.

    Raises AdapterBusyError while requests use it or it is pinned.
    """

    digest: str

    def run(self, engine: CalledEngine) -> int:
        return engine.unload(self.digest)


class GetResidency(EngineCall[tuple[AdapterResidency, ...]], frozen=True, tag=True):
    """Every adapter that is on the host or the device."""

    def run(self, engine: CalledEngine) -> tuple[AdapterResidency, ...]:
        return engine.residency()


class Merge(EngineCall[MergedState], frozen=True, tag=True):
    """Fold a mixture into the base between two steps; None restores the base bit for bit.

    Raises MixtureError for one that cannot be merged beside other traffic.
    """

    mixture: ResolvedMixture | None

    def run(self, engine: CalledEngine) -> Future[MergedState]:
        return engine.merge(self.mixture)


class GetMerged(EngineCall[MergedState], frozen=True, tag=True):
    """What the base weights hold."""

    def run(self, engine: CalledEngine) -> MergedState:
        return engine.merged()


class GetStats(EngineCall[EngineStats], frozen=True, tag=True):
    """Counters since the start, gauges of now."""

    def run(self, engine: CalledEngine) -> EngineStats:
        return engine.stats()


class PutCentroids(EngineCall[None], frozen=True, tag=True):
    """Centroids by digest for a router that reads hidden states; gone when the engine restarts.

    Raises RouterError if there is no such router.
    """

    router: str
    centroids: Mapping[str, Sequence[float]]

    def run(self, engine: CalledEngine) -> None:
        engine.put_centroids(self.router, self.centroids)


AnyCall = LoadAdapter | Pin | Unload | GetResidency | Merge | GetMerged | GetStats | PutCentroids


def decode_answer(command: EngineCall[Answer], value: bytes | msgspec.Raw) -> Answer:
    """The answer to a call, from msgpack."""
    answer: Answer = _decoder(type(command)).decode(value)
    return answer


@functools.cache
def _decoder(kind: type[EngineCall[Any]]) -> msgspec.msgpack.Decoder[Any]:
    (base,) = vars(kind)["__orig_bases__"]
    (answer,) = get_args(base)
    return msgspec.msgpack.Decoder(answer)
