"""Copies of adapters in host memory, and the threads that read them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from router_engine.config import AdapterPoolConfig
from router_engine.errors import AdapterLoadError
from router_engine.experts.base import HostAdapter

T = TypeVar("T")


@dataclass(slots=True)
class ResidencyCounters:
    """What has come and gone. recent: seconds of the loads that are not reported yet."""

    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    recent: list[float] = field(default_factory=list)

    def count_load(self, adapter: HostAdapter) -> None:
        """An adapter has been read."""
        self.loads += 1
        self.load_seconds += adapter.load_seconds
        self.recent.append(adapter.load_seconds)


class HostCopies:
    """Reads adapters beside the running steps and keeps what fits `config.host_bytes`.

    All but what `read` does belongs to the engine's thread.
    """

    def __init__(
        self,
        read: Callable[[str], HostAdapter],
        config: AdapterPoolConfig,
        wake: Callable[[], None],
    ) -> None:
        """`read` is called with a digest; `wake` when it has ended, by whatever thread."""
        self._read = read
        self._limit = config.host_bytes
        self._wake = wake
        self._executor = ThreadPoolExecutor(config.loader_threads, "adapter-loader")
        self._reading: dict[str, Future[HostAdapter]] = {}
        self._copies: OrderedDict[str, HostAdapter] = OrderedDict()  # least recently used first

    def __contains__(self, digest: str) -> bool:
        return digest in self._copies

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, digest: str) -> HostAdapter | None:
        """The copy of an adapter, if there is one."""
        return self._copies.get(digest)

    def use(self, digest: str) -> HostAdapter:
        """The copy of an adapter, which counts as the most recently used; KeyError without one."""
        self._copies.move_to_end(digest)
        return self._copies[digest]

    def read_ahead(self, digests: Collection[str]) -> None:
        """Have adapters read, in this order; others are not, unless that has begun."""
        for digest in [digest for digest in self._reading if digest not in digests]:
            if self._reading[digest].cancel():
                del self._reading[digest]
        for digest in digests:
            if digest not in self._reading:
                self._reading[digest] = self.ask(digest, partial(self._read, digest))
                self._reading[digest].add_done_callback(lambda _: self._wake())

    def ask(self, digest: str, act: Callable[[], T]) -> Future[T]:
        """What a loader's thread finds in an adapter's files; the future raises AdapterLoadError.

        After all that was asked for before.
        """
        return self._executor.submit(_told, digest, act)

    def read_now(self, digest: str) -> HostAdapter:
        """Read an adapter on the calling thread. Raises AdapterLoadError."""
        self._copies[digest] = _told(digest, lambda: self._read(digest))
        return self._copies[digest]

    @property
    def has_news(self) -> bool:
        """Whether `collect` would find something."""
        return any(future.done() for future in self._reading.values())

    def collect(self) -> tuple[list[HostAdapter], list[tuple[str, str]]]:
        """The adapters that have been read since, and (digest, reason) of those that could not."""
        read, failed = [], []
        for digest, future in [item for item in self._reading.items() if item[1].done()]:
            del self._reading[digest]
            error = future.exception()
            if error is None:
                self._copies[digest] = future.result()
                read.append(self._copies[digest])
            else:
                failed.append((digest, str(error)))
        return read, failed

    def drop(self, digest: str) -> int:
        """Forget a copy; the bytes that it held, 0 without one."""
        copy = self._copies.pop(digest, None)
        return 0 if copy is None else copy.num_bytes

    def trim(self, wanted: Collection[str]) -> list[str]:
        """Drop copies that nobody wants until the rest fits; names them."""
        held = sum(copy.num_bytes for copy in self._copies.values())
        dropped: list[str] = []
        for digest in [digest for digest in self._copies if digest not in wanted]:
            if held <= self._limit:
                break
            held -= self.drop(digest)
            dropped.append(digest)
        return dropped

    def close(self) -> None:
        """Wait for the file that is being read; those that wait are not read any more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _told(digest: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except Exception as error:  # of the store, of the disk, of the file's format
        raise AdapterLoadError(f"adapter {digest} failed to load: {error}") from error
