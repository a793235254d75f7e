"""Copies of adapters in host memory, and the threads that read them there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeVar

from router_engine.config import AdapterPoolConfig
from router_engine.errors import AdapterLoadError
from router_engine.experts.base import HostAdapter

T = TypeVar("T")


@dataclass(slots=True)
class ResidencyCounters:
    """Adapters that have come and gone since the start."""

    loads: int = 0  # read from disk
    evictions: int = 0  # taken off the device to make room
    load_seconds: float = 0.0  # of all loads together
    recent: list[float] = field(default_factory=list)  # seconds of loads not reported yet

    def count_load(self, adapter: HostAdapter) -> None:
        """An adapter has been read."""
        self.loads += 1
        self.load_seconds += adapter.load_seconds
        self.recent.append(adapter.load_seconds)


class HostCopies:
    """Reads adapters beside the running steps and keeps what fits `config.host_bytes`.

    What the first waiter needs is read and kept however large it is, or nobody would go on. Until
    `collect` there may be one more for each loader's thread: a size is known once it is read.

    All but what `read` and `_read_one` do belongs to the engine's thread.
    """

    def __init__(
        self,
        read: Callable[[str], HostAdapter],
        config: AdapterPoolConfig,
        wake: Callable[[], None],
    ) -> None:
        """`read` is called with a digest; `wake` when it has ended, by whatever thread."""
        self._read = read
        assert config.host_bytes is not None, "settled by `memory.defaults`"
        self._limit = config.host_bytes
        self._wake = wake
        self._executor = ThreadPoolExecutor(config.loader_threads, "adapter-loader")
        self._reading: dict[str, Future[HostAdapter | None]] = {}
        self._copies: OrderedDict[str, HostAdapter] = OrderedDict()  # least recently used first
        self._sizes: dict[str, int] = {}  # bytes of what waiters need and was read once
        self._first: frozenset[str] = frozenset()  # what the first waiter needs: read in any case
        self._front: set[str] = set()  # what is to be read or kept
        self._held = 0  # bytes of copies of these
        self._uncollected = 0  # bytes that have been read and not collected
        self._counting = threading.Lock()

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

    def read_ahead(self, needs: Sequence[Sequence[str]], staying: Collection[str]) -> None:
        """Have copies read that waiters need: the first's, and those of later ones while all fit.

        `needs`: of each waiter, in their order. `staying`: copies that are needed besides. None of
        them is dropped by `trim`. Others are not read, unless that has begun.
        """
        wanted = dict.fromkeys(chain.from_iterable(needs))
        needed = (*wanted, *staying)
        copies = {each: self._copies[each].num_bytes for each in needed if each in self}
        sizes = self._sizes | copies
        self._sizes = {digest: sizes[digest] for digest in wanted if digest in sizes}
        self._first = frozenset(needs[0] if needs else ())
        self._front = {*staying}
        room = self._limit - sum(copies.get(digest, 0) for digest in staying)
        for digest in [digest for digest in wanted if digest not in self._front]:
            room -= sizes.get(digest, 1)  # one that was never read takes what is left
            if room < 0 and digest not in self._first:
                break
            self._front.add(digest)
        self._held = sum(size for digest, size in copies.items() if digest in self._front)
        for digest in [digest for digest in self._reading if digest not in self._front]:
            if self._reading[digest].cancel():
                del self._reading[digest]
        for digest in [digest for digest in wanted if digest in self._front]:
            if digest not in self._reading and digest not in self._copies:
                self._reading[digest] = self.ask(digest, partial(self._read_one, digest))
                self._reading[digest].add_done_callback(lambda _: self._wake())

    def _read_one(self, digest: str) -> HostAdapter | None:
        """On a loader's thread. None: what was read since `read_ahead` leaves no room for it."""
        taken = self._held + self._uncollected + self._sizes.get(digest, 1)
        if taken > self._limit and digest not in self._first:
            return None
        copy = self._read(digest)
        with self._counting:
            self._uncollected += copy.num_bytes
        return copy

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
            copy = None if error is not None else future.result()
            if copy is not None:
                with self._counting:
                    self._uncollected -= copy.num_bytes
                self._copies[digest] = copy
                read.append(copy)
            elif error is not None:
                failed.append((digest, str(error)))
        return read, failed

    def drop(self, digest: str) -> int:
        """Forget a copy; the bytes that it held, 0 without one."""
        copy = self._copies.pop(digest, None)
        return 0 if copy is None else copy.num_bytes

    def trim(self) -> list[str]:
        """Drop copies that `read_ahead` did not choose until the rest fits; names them."""
        held = sum(copy.num_bytes for copy in self._copies.values())
        dropped: list[str] = []
        for digest in [digest for digest in self._copies if digest not in self._front]:
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
