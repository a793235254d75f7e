"""Residency of adapters: on disk, host or device; who uses them; who waits for them.

Files are read by background threads. Rows are written and freed only in `poll`, between two steps,
by the engine's thread. A request holds its adapters from the moment it is granted until it ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain

from adapters_store.types import AdapterManifest
from router_engine.config import AdapterPoolConfig, SchedulerConfig
from router_engine.experts.base import AdapterSource, BaseProjections, HostAdapter
from router_engine.experts.holders import Holders
from router_engine.experts.host_copies import HostCopies, ResidencyCounters
from router_engine.experts.loading import load_adapter
from router_engine.experts.rows import RowPool
from router_engine.experts.variants import plain_digest, variant_of
from router_engine.experts.waiting import (
    LoadResults,
    Waiter,
    WaitList,
    fewest,
    lack_of_room,
    unrunnable,
)
from router_engine.info import AdapterResidency, Residency

_TURNS = SchedulerConfig()

ADMIN = "admin:"  # owner prefix of loads and pins that no request made


class ResidencyManager:
    """Owns the row pool's contents and the host copies.

    Rows go to waiters in the order of their coming. An owner whose adapters are resident passes by
    them, so that what is loaded is used, but no waiter is bypassed more than `max_overtaken` times
    by owners of the residents that could make room for it: from then on such owners wait behind it.
    """

    def __init__(
        self,
        pool: RowPool,
        source: AdapterSource,
        config: AdapterPoolConfig,
        base: BaseProjections,
        wake: Callable[[], None],
        turns: SchedulerConfig = _TURNS,
        kinds: Callable[[], Collection[str] | None] = lambda: None,
    ) -> None:
        """`kinds`: those that what computes runs; None: all. Adapters with others are refused."""
        self._pool = pool
        self._source = source
        self._kinds = kinds
        self._host = HostCopies(partial(_load, source, pool, base), config, wake)
        self._device: OrderedDict[str, float] = OrderedDict()  # digest -> load seconds; LRU first
        self._holders = Holders()
        self._manifests: dict[str, AdapterManifest] = {}  # of all on host or device
        self._waiting = WaitList(turns.max_overtaken)
        self._arriving: list[Waiter] = []  # their rows are being copied
        self._changed = False  # something that `poll` has not seen
        self._draining: frozenset[str] = frozenset()  # of the waiter whose turn it is
        self.counters = ResidencyCounters()

    def acquire(self, owner: str, digests: Sequence[str], *, on_host: bool = False) -> bool:
        """Ask for adapters. True: granted at once; otherwise a later `poll` names the owner.

        on_host: with their copies on the host, which are there until the `poll` after that.
        """
        waiter = Waiter(owner, tuple(dict.fromkeys(digests)), on_host)
        wanted = waiter.digests
        is_there = self.are_resident(wanted) and self._has_files(waiter)
        if is_there and self._draining.isdisjoint(wanted):
            self._grant(owner, wanted)
            if self._waiting.grant_newcomer():
                self._drain()
            return True
        self._waiting.add(waiter)
        self._changed = True
        self._read_ahead()
        return False

    def are_resident(self, digests: Sequence[str]) -> bool:
        """Whether all of them are on the device, rows and all."""
        return self._placed(digests) and all(map(self._pool.memory.arrived, digests))

    def hold(self, owner: str, digests: Sequence[str], *, for_good: bool) -> None:
        """Use adapters that are on the device already.

        for_good: until an admin ends it, so that waiting for their rows is in vain.
        """
        self._holders.hold(owner, digests, for_good=for_good)
        self._touch(digests)
        self._changed = True

    def would_block(self, digests: Sequence[str]) -> bool:
        """Whether somebody waits for rows in vain for as long as `digests` stay on the device."""
        staying = {*self._holders.for_good, *digests}
        return any(self._lack_of_room(waiter, staying) is not None for waiter in self._waiting)

    def release(self, owner: str) -> None:
        """The owner ended: its adapters may be evicted. Unknown owners are ignored."""
        self._changed = True
        self._holders.release(owner)
        self._drop_waiters([owner])
        self._arriving = [waiter for waiter in self._arriving if waiter.owner != owner]

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep a resident adapter on the device until it is unpinned."""
        self._changed = True
        self._holders.pin(digest, pinned=pinned)

    def poll(self) -> LoadResults:
        """Settle what has changed: finished loads, free rows. Engine thread, between steps."""
        self._changed = False
        failed = [*self._collect_loads(), *self._take_waiting_in_vain(())]
        refused = [*self._take_unrunnable(), *self._take_waiting_in_vain(self._holders.for_good)]
        blocked: Waiter | None = None  # waits for rows, not for a file: later ones take none
        for waiter in self._waiting:
            if self._placed(waiter.digests) and self._has_files(waiter):
                granted = blocked is None or blocked.draining.isdisjoint(waiter.digests)
            else:
                granted = blocked is None and self._make_room(waiter)
            if granted:
                self._grant(waiter.owner, waiter.digests)
                self._arriving.append(waiter)
                if self._waiting.grant(waiter):
                    self._drain()
            elif blocked is None and self._has_files(waiter):
                blocked = waiter
        self._drain()
        self._read_ahead()
        self._trim_host()
        return LoadResults(self._collect_arrived(), tuple(failed), tuple(refused))

    @property
    def has_news(self) -> bool:
        """Whether `poll` might settle something now."""
        changed = bool(self._arriving) or (self._changed and bool(self._waiting))
        return changed or self._host.has_news

    def are_on_host(self, digests: Collection[str]) -> bool:
        """Whether `host_copy` of each reads no file."""
        return all(digest in self._host for digest in digests)

    def host_copy(self, digest: str) -> HostAdapter:
        """The weights of an adapter on the host, read now where no copy of them is there.

        Raises AdapterLoadError.
        """
        if digest not in self._host:
            self._manifests[digest] = self._host.read_now(digest).manifest
        return self._host.use(digest)

    def manifest(self, digest: str) -> AdapterManifest:
        """What an adapter that is on host or device holds."""
        return self._manifests[digest]

    def unload(self, digest: str) -> int:
        """Drop an adapter, and its variants, from device and host; returns bytes freed."""
        resident = {*self._host, *self._device}
        family = [each for each in resident if digest in (each, plain_digest(each))]
        self._holders.require_free(family)
        self._changed = True
        return sum(map(self._drop, family))

    def _drop(self, digest: str) -> int:
        on_host = self._host.drop(digest)
        on_device = self._evict(digest) if digest in self._device else 0
        self._forget(digest)
        if self._pool.memory.shares_host:
            return max(on_host, on_device)
        return on_host + on_device

    def residency(self) -> tuple[AdapterResidency, ...]:
        return tuple(self.describe(digest) for digest in sorted({*self._host, *self._device}))

    def described(self, digest: str) -> Future[AdapterResidency]:
        """As `describe`; a loader's thread reads what an adapter that is only on disk holds.

        The future raises AdapterLoadError.
        """
        if digest not in self._manifests:
            return self._host.ask(digest, lambda: self._describe(digest, self._stored(digest)))
        description: Future[AdapterResidency] = Future()
        description.set_result(self.describe(digest))
        return description

    def describe(self, digest: str) -> AdapterResidency:
        """Of an adapter that is on host or device."""
        return self._describe(digest, self._manifests[digest])

    def _stored(self, digest: str) -> AdapterManifest:
        return self._source.fetch(plain_digest(digest)).manifest

    def _describe(self, digest: str, manifest: AdapterManifest) -> AdapterResidency:
        where = Residency.DISK
        if digest in self._device:
            where = Residency.DEVICE
        elif digest in self._host:
            where = Residency.HOST
        host = self._host.get(digest)
        seconds = self._device.get(digest, None if host is None else host.load_seconds)
        return AdapterResidency(
            digest=digest,
            residency=where,
            pinned=digest in self._holders.pins,
            users=len(self._holders.users.get(digest, ())),
            rank_rows=manifest.rank_rows,
            device_bytes=self._known_bytes([digest]),
            load_seconds=seconds,
        )

    @property
    def num_device(self) -> int:
        return len(self._device)

    @property
    def num_host(self) -> int:
        return len(self._host)

    @property
    def users(self) -> dict[str, set[str]]:
        return self._holders.users

    def check_integrity(self, owners: Collection[str]) -> None:
        """Users are live, what they use is on the device; raises ValueError naming what is not."""
        if set(self._device) != set(self._pool.residents):
            raise ValueError("the device list and the row pool hold different adapters")
        for digest, users in self._holders.users.items():
            strangers = users.difference(owners)
            if strangers or digest not in self._device:
                raise ValueError(f"{digest} is held by {sorted(users)}, ended: {sorted(strangers)}")
        self._pool.check_integrity()

    def close(self) -> None:
        self._host.close()

    def _grant(self, owner: str, digests: Sequence[str]) -> None:
        self._holders.grant(owner, digests)
        self._touch(digests)

    def _touch(self, digests: Sequence[str]) -> None:
        """They are the most recently used."""
        for digest in digests:
            self._device.move_to_end(digest)

    def _placed(self, digests: Sequence[str]) -> bool:
        return all(digest in self._device for digest in digests)

    def _collect_arrived(self) -> tuple[str, ...]:
        """Owners whose rows are there by now."""
        arrived = [waiter for waiter in self._arriving if self.are_resident(waiter.digests)]
        self._arriving = [waiter for waiter in self._arriving if waiter not in arrived]
        return tuple(waiter.owner for waiter in arrived)

    def _read_ahead(self) -> None:
        """Have the files read that waiters lack, those in front first, and no others."""
        needs = [
            [digest for digest in waiter.digests if self._needs_copy(waiter, digest)]
            for waiter in self._waiting
        ]
        arriving = (waiter.digests for waiter in self._arriving if waiter.on_host)
        self._host.read_ahead(needs, [*chain.from_iterable(arriving)])

    def _collect_loads(self) -> list[tuple[str, str]]:
        read, unread = self._host.collect()
        for adapter in read:
            self._manifests[adapter.digest] = adapter.manifest
            self.counters.count_load(adapter)
        failed = [
            (waiter.owner, reason)
            for digest, reason in unread
            for waiter in self._waiting
            if self._lacks_file(waiter, digest)
        ]
        self._drop_waiters([owner for owner, _ in failed])
        return failed

    def _take_waiting_in_vain(self, staying: Collection[str]) -> list[tuple[str, str]]:
        """Those who wait in vain for as long as `staying` are on the device; they wait no more."""
        problems = ((waiter.owner, self._lack_of_room(waiter, staying)) for waiter in self._waiting)
        return self._take(problems)

    def _take_unrunnable(self) -> list[tuple[str, str]]:
        """Those whose adapters hold experts that what computes does not run."""
        kinds = self._kinds()
        return self._take(
            (waiter.owner, unrunnable(digest, self._manifests.get(digest), kinds))
            for waiter in self._waiting
            for digest in waiter.digests
        )

    def _take(self, problems: Iterable[tuple[str, str | None]]) -> list[tuple[str, str]]:
        """The owners with a problem, each with its first; they wait no more."""
        reasons: dict[str, str] = {}
        for owner, problem in problems:
            if problem is not None:
                reasons.setdefault(owner, problem)
        self._drop_waiters(reasons.keys())
        return list(reasons.items())

    def _drop_waiters(self, owners: Collection[str]) -> None:
        if self._waiting.drop(owners):
            self._read_ahead()

    def _lack_of_room(self, waiter: Waiter, staying: Collection[str]) -> str | None:
        """Why the adapters find no room for as long as `staying` do; None if they could."""
        needed = self._known_bytes(waiter.digests)
        taken = self._known_bytes({*staying}.difference(waiter.digests))
        return lack_of_room(needed, taken, self._pool.memory.num_bytes)

    def _known_bytes(self, digests: Collection[str]) -> int:
        """Bytes on the device of those adapters that have been read."""
        read = (self._pool.residents.get(each) or self._host.get(each) for each in digests)
        return sum(adapter.num_bytes for adapter in read if adapter is not None)

    def _has_files(self, waiter: Waiter) -> bool:
        return not any(self._lacks_file(waiter, digest) for digest in waiter.digests)

    def _lacks_file(self, waiter: Waiter, digest: str) -> bool:
        """Whether a file must be read before an adapter is where the waiter wants it."""
        return self._needs_copy(waiter, digest) and digest not in self._host

    def _needs_copy(self, waiter: Waiter, digest: str) -> bool:
        return digest in waiter.digests and (waiter.on_host or digest not in self._device)

    def _make_room(self, waiter: Waiter) -> bool:
        """Place what the waiter still lacks, evicting unused adapters; all of it or nothing."""
        if not self._has_files(waiter):
            return False
        missing = self._missing(waiter)
        victims = [
            digest
            for digest in self._device
            if digest not in waiter.digests and self._holders.is_free(digest)
        ]
        needed = sum(adapter.num_bytes for adapter in missing)
        if not self._pool.fits_without(needed, victims):
            return False
        while needed > self._pool.free_bytes:
            self._evict(victims.pop(0))
            self.counters.evictions += 1
        for adapter in missing:
            self._pool.place(adapter)
            self._device[adapter.digest] = adapter.load_seconds
            self._host.use(adapter.digest)
        return True

    def _missing(self, waiter: Waiter) -> list[HostAdapter]:
        """What is to be placed for a waiter that lacks no file."""
        copies = (self._host.get(each) for each in waiter.digests if each not in self._device)
        return [copy for copy in copies if copy is not None]

    def _evict(self, digest: str) -> int:
        del self._device[digest]
        self._forget(digest)
        return self._pool.remove(digest)

    def _forget(self, digest: str) -> None:
        if digest not in self._device and digest not in self._host:
            self._manifests.pop(digest, None)

    def _trim_host(self) -> None:
        for digest in self._host.trim():
            self._forget(digest)

    def _drain(self) -> None:
        """Choose what is to make room for the first waiter for rows, if it starves."""
        first = self._waiting.starving(
            lambda waiter: self._has_files(waiter) and not self._placed(waiter.digests)
        )
        if first is None:
            self._draining = frozenset()
            return
        staying = self._holders.beside_requests
        needed = sum(adapter.num_bytes for adapter in self._missing(first))
        leaving = [digest for digest in first.draining if digest in self._device]
        if not staying.isdisjoint(leaving) or not self._pool.fits_without(needed, leaving):
            # Those that the fewest use, and of these the least recently used.
            movable = [each for each in self._device if each not in {*staying, *first.digests}]
            movable.sort(key=lambda digest: len(self._holders.users.get(digest, ())))
            first.draining = fewest(movable, partial(self._pool.fits_without, needed))
        self._draining = first.draining


def _load(source: AdapterSource, pool: RowPool, base: BaseProjections, digest: str) -> HostAdapter:
    """An adapter's weights, read and made ready for the device; called by threads."""
    files, variant = source.fetch(plain_digest(digest)), variant_of(digest)
    return pool.memory.prepare(load_adapter(digest, files, pool.dtype, base, variant))
