"""Where adapters are: disk, host, device; who uses them; who waits for them.

Files are read by background threads. Rows are written and freed only in `pump`, between two steps,
by the engine's thread. A request holds its adapters from the moment it is granted until it ends.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from adapters_store.types import AdapterManifest
from router_engine.client.base import AdapterResidency, Residency
from router_engine.config import AdapterPoolConfig
from router_engine.errors import AdapterBusyError
from router_engine.experts.base import AdapterSource, BaseProjections, HostAdapter
from router_engine.experts.loading import load_adapter
from router_engine.experts.rows import RowPool

# A waiter that others overtook this often closes the door behind it, so that it cannot starve.
_MAX_OVERTAKEN = 256

ADMIN = "admin:"  # owner prefix of loads and pins that no request made


@dataclass(slots=True)
class _Waiter:
    owner: str
    digests: tuple[str, ...]
    overtaken: int = 0


@dataclass(frozen=True, slots=True)
class Grants:
    """What one `pump` settled: owners whose adapters are all on the device, and failures."""

    ready: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()  # (owner, reason)


@dataclass(slots=True)
class ResidencyCounters:
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    recent: list[float] = field(default_factory=list)  # seconds of loads not yet reported


class ResidencyManager:
    """Owns the row pool's contents and the host copies."""

    def __init__(
        self,
        pool: RowPool,
        source: AdapterSource,
        config: AdapterPoolConfig,
        dtype: torch.dtype,
        base: BaseProjections,
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._source = source
        self._config = config
        self._dtype = dtype
        self._base = base
        self._wake = wake
        self._executor = ThreadPoolExecutor(config.loader_threads, "adapter-loader")
        self._loading: dict[str, Future[HostAdapter]] = {}
        self._host: OrderedDict[str, HostAdapter] = OrderedDict()  # least recently used first
        self._device: OrderedDict[str, float] = OrderedDict()  # digest -> load seconds; LRU first
        self._users: dict[str, set[str]] = {}
        self._pins: set[str] = set()
        self._manifests: dict[str, AdapterManifest] = {}  # of all on host or device
        self._waiters: list[_Waiter] = []
        self._arriving: list[_Waiter] = []  # their rows are being copied
        self._changed = False  # something that `pump` has not seen
        self.counters = ResidencyCounters()

    def acquire(self, owner: str, digests: Sequence[str]) -> bool:
        """Ask for adapters. True: granted at once; otherwise a later `pump` names the owner."""
        wanted = tuple(dict.fromkeys(digests))
        if self.are_resident(wanted) and not self._door_closed():
            self._grant(owner, wanted)
            return True
        self._waiters.append(_Waiter(owner, wanted))
        self._changed = True
        for digest in wanted:
            self._start_load(digest)
        return False

    def are_resident(self, digests: Sequence[str]) -> bool:
        """Whether all of them are on the device, rows and all."""
        return self._placed(digests) and all(map(self._pool.transfer.arrived, digests))

    def hold(self, owner: str, digests: Sequence[str]) -> None:
        """Use adapters that are on the device already."""
        self._grant(owner, digests)

    def release(self, owner: str) -> None:
        """The owner ended: its adapters may be evicted. Unknown owners are ignored."""
        self._changed = True
        self._waiters = [waiter for waiter in self._waiters if waiter.owner != owner]
        self._arriving = [waiter for waiter in self._arriving if waiter.owner != owner]
        for digest in [digest for digest, users in self._users.items() if owner in users]:
            self._users[digest].discard(owner)
            if not self._users[digest]:
                del self._users[digest]

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep a resident adapter on the device until it is unpinned."""
        if pinned:
            self._pins.add(digest)
        else:
            self._pins.discard(digest)
            self._changed = True

    def pump(self) -> Grants:
        """Settle what has changed: finished loads, free rows. Engine thread, between steps."""
        self._changed = False
        failed = self._collect_loads()
        blocked = False
        for waiter in list(self._waiters):
            if self._placed(waiter.digests) and not (blocked and self._door_closed()):
                granted = True
            else:
                granted = not blocked and self._make_room(waiter)
            if granted:
                self._waiters.remove(waiter)
                self._grant(waiter.owner, waiter.digests)
                self._arriving.append(waiter)
                self._count_overtaken(waiter)
            elif all(digest in self._host or digest in self._device for digest in waiter.digests):
                # It waits for rows, not for a file: later ones must not take rows before it.
                blocked = True
        self._trim_host()
        return Grants(self._collect_arrived(), tuple(failed))

    @property
    def has_news(self) -> bool:
        """Whether `pump` might settle something now."""
        changed = bool(self._arriving) or (self._changed and bool(self._waiters))
        return changed or any(future.done() for future in self._loading.values())

    def host_copy(self, digest: str) -> HostAdapter:
        """The weights of an adapter on the host, read now if only the device holds them."""
        if digest not in self._host:
            self._host[digest] = self._load(digest)
        self._host.move_to_end(digest)
        return self._host[digest]

    def manifest(self, digest: str) -> AdapterManifest:
        """What an adapter holds; read from its files where it is only on disk."""
        known = self._manifests.get(digest)
        return self._source.fetch(digest).manifest if known is None else known

    def unload(self, digest: str) -> int:
        """Drop an adapter from device and host; returns bytes freed."""
        if digest in self._pins:
            raise AdapterBusyError(f"{digest} is pinned: unpin it first")
        if self._users.get(digest):
            raise AdapterBusyError(f"{digest} is used by {len(self._users[digest])} live requests")
        freed = self._evict(digest) if digest in self._device else 0
        self._changed = True
        host = self._host.pop(digest, None)
        self._forget(digest)
        return freed + (0 if host is None else host.num_bytes)

    def residency(self) -> tuple[AdapterResidency, ...]:
        return tuple(self.describe(digest) for digest in sorted({*self._host, *self._device}))

    def describe(self, digest: str) -> AdapterResidency:
        where = Residency.DISK
        if digest in self._device:
            where = Residency.DEVICE
        elif digest in self._host:
            where = Residency.HOST
        manifest = self.manifest(digest)
        host = self._host.get(digest)
        seconds = self._device.get(digest, None if host is None else host.load_seconds)
        return AdapterResidency(
            digest=digest,
            residency=where,
            pinned=digest in self._pins,
            users=len(self._users.get(digest, ())),
            rank_rows=manifest.rank_rows,
            device_bytes=manifest.device_bytes(self._dtype.itemsize),
            load_seconds=seconds,
        )

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    @property
    def num_device(self) -> int:
        return len(self._device)

    @property
    def num_host(self) -> int:
        return len(self._host)

    @property
    def users(self) -> dict[str, set[str]]:
        return self._users

    def check_integrity(self, owners: Collection[str]) -> None:
        """Users are live, what they use is on the device; raises ValueError naming what is not."""
        if set(self._device) != set(self._pool.residents):
            raise ValueError("the device list and the row pool hold different adapters")
        for digest, users in self._users.items():
            strangers = users.difference(owners)
            if strangers or digest not in self._device:
                raise ValueError(f"{digest} is held by {sorted(users)}, ended: {sorted(strangers)}")
        self._pool.check_integrity()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _grant(self, owner: str, digests: Sequence[str]) -> None:
        for digest in digests:
            self._users.setdefault(digest, set()).add(owner)
            self._device.move_to_end(digest)

    def _placed(self, digests: Sequence[str]) -> bool:
        return all(digest in self._device for digest in digests)

    def _collect_arrived(self) -> tuple[str, ...]:
        """Owners whose rows are there by now."""
        arrived = [waiter for waiter in self._arriving if self.are_resident(waiter.digests)]
        self._arriving = [waiter for waiter in self._arriving if waiter not in arrived]
        return tuple(waiter.owner for waiter in arrived)

    def _start_load(self, digest: str) -> None:
        if digest in self._host or digest in self._device or digest in self._loading:
            return
        future = self._executor.submit(self._load, digest)
        self._loading[digest] = future
        future.add_done_callback(lambda _: self._wake())

    def _load(self, digest: str) -> HostAdapter:
        adapter = load_adapter(digest, self._source.fetch(digest), self._dtype, self._base)
        return self._pool.transfer.prepare(adapter)

    def _collect_loads(self) -> list[tuple[str, str]]:
        failed: list[tuple[str, str]] = []
        for digest, future in [item for item in self._loading.items() if item[1].done()]:
            del self._loading[digest]
            error = future.exception()
            if error is None:
                self._loaded(future.result())
                continue
            reason = f"adapter {digest} failed to load: {error}"
            failed.extend(
                (waiter.owner, reason) for waiter in self._waiters if digest in waiter.digests
            )
        for waiter in self._waiters:
            problem = self._misfit(waiter)
            if problem is not None:
                failed.append((waiter.owner, problem))
        gone = {owner for owner, _ in failed}
        self._waiters = [waiter for waiter in self._waiters if waiter.owner not in gone]
        return failed

    def _loaded(self, adapter: HostAdapter) -> None:
        self._host[adapter.digest] = adapter
        self._manifests[adapter.digest] = adapter.manifest
        self.counters.loads += 1
        self.counters.load_seconds += adapter.load_seconds
        self.counters.recent.append(adapter.load_seconds)

    def _misfit(self, waiter: _Waiter) -> str | None:
        """Why the adapters could not be resident together even alone; None if they could."""
        rows: Counter[str] = Counter()
        for digest in waiter.digests:
            manifest = self._manifests.get(digest)
            if manifest is not None:
                rows.update(manifest.rows_by_site)
        most = max(rows.values(), default=0)
        if most <= self._pool.max_rank_rows:
            return None
        return (
            f"the adapters need {most} rank rows in one layer, the device pool holds "
            f"{self._pool.max_rank_rows}: use fewer adapters or a larger max_rank_rows"
        )

    def _make_room(self, waiter: _Waiter) -> bool:
        """Place what the waiter still lacks, evicting unused adapters; all of it or nothing."""
        missing: list[HostAdapter] = []
        for digest in waiter.digests:
            if digest in self._device:
                continue
            if digest not in self._host:
                self._start_load(digest)
                return False
            missing.append(self._host[digest])
        victims = [
            digest
            for digest in self._device
            if digest not in waiter.digests
            and digest not in self._pins
            and not self._users.get(digest)
        ]
        if not self._pool.fits_without(missing, victims):
            return False
        while not self._pool.fits(missing):
            self._evict(victims.pop(0))
            self.counters.evictions += 1
        for adapter in missing:
            self._pool.place(adapter)
            self._device[adapter.digest] = adapter.load_seconds
            self._host.move_to_end(adapter.digest)
        return True

    def _evict(self, digest: str) -> int:
        del self._device[digest]
        self._forget(digest)
        return self._pool.remove(digest)

    def _forget(self, digest: str) -> None:
        if digest not in self._device and digest not in self._host:
            self._manifests.pop(digest, None)

    def _trim_host(self) -> None:
        held = sum(adapter.num_bytes for adapter in self._host.values())
        if held <= self._config.host_bytes:
            return
        wanted = {digest for waiter in self._waiters for digest in waiter.digests}
        for digest in [digest for digest in self._host if digest not in wanted]:
            if held <= self._config.host_bytes:
                return
            held -= self._host.pop(digest).num_bytes
            self._forget(digest)

    def _door_closed(self) -> bool:
        return bool(self._waiters) and self._waiters[0].overtaken > _MAX_OVERTAKEN

    def _count_overtaken(self, granted: _Waiter) -> None:
        if self._waiters and self._waiters[0] is not granted:
            self._waiters[0].overtaken += 1
