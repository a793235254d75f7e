"""Administration of adapters: one use case behind the routes, over store and engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from adapters_store.device_size import device_bytes
from adapters_store.errors import (
    InvalidAdapterError,
    StoreFullError,
    StoreUnavailableError,
)
from adapters_store.folders import select
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.peft import CONFIG_FILE
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterRecord, AdapterRef, CheckReport
from adapters_store.upload import PublishRequest
from router_engine.calls import GetMerged, GetResidency, LoadAdapter, Merge, Pin, Unload
from router_engine.client.base import EngineClient
from router_engine.errors import EngineError, MixtureError
from router_engine.experts.variants import plain_digest
from router_engine.info import AdapterResidency, EngineInfo, MergedState
from server.adapters.text_states import TextStates
from server.errors import InputError
from server.generation.mixtures import Mixtures
from server.schemas.adapters import (
    AdapterReply,
    CheckReply,
    DeletedReply,
    MergedReply,
    ProblemReply,
    ResidencyReply,
    TextsReply,
    TextState,
    UnloadReply,
)
from server.schemas.mixture import FixedMixture
from server.settings import SettingsError
from server.threads import Threads

P = ParamSpec("P")
Value = TypeVar("Value")
log = structlog.get_logger(__name__)

_CONFIGS = (MANIFEST_FILE, CONFIG_FILE)  # either makes a folder an adapter
CENTROID_SECONDS = 5.0  # how long a publish waits to say whether its texts are distinct


class AdapterService:
    """Publishes, lists, moves and removes adapters, and says where they are."""

    def __init__(
        self,
        store: AdapterStore,
        engine: EngineClient,
        info: EngineInfo,
        states: TextStates,
        mixtures: Mixtures,
        base_name: str,
        threads: Threads,
    ) -> None:
        """threads: for what admins ask for, and for nothing that a request waits for."""
        self._threads = threads
        self._store = store
        self._engine = engine
        self._info = info
        self._states = states
        self._mixtures = mixtures
        self._base_name = base_name

    async def close(self) -> None:
        """Stop what goes on in the background."""
        await self._states.close()

    async def publish(self, request: PublishRequest) -> AdapterReply:
        """Store the next version of a name. Raises InvalidAdapterError with every problem."""
        record, report = await self._publish(request)
        await self._states.make(record, seconds=CENTROID_SECONDS)
        reply = await self._reply(record)
        return reply.model_copy(update={"notes": list(report.notes)})

    async def set_texts(self, reference: str, texts: Sequence[str]) -> AdapterReply:
        """Put sample texts in force in place of all others. Raises InvalidAdapterError."""
        record = await self._run(self._store.set_texts, reference, texts)
        log.info("texts set", adapter=record.label, texts=record.num_texts)
        await self._states.make(record, seconds=CENTROID_SECONDS)
        return await self._reply(record)

    async def texts(self, reference: str) -> TextsReply:
        """The sample texts in force."""
        record = await self._run(self._store.resolve, reference)
        texts = await self._run(self._store.texts, record.digest)
        return TextsReply(name=record.label, texts=list(texts))

    async def publish_folder(self, directory: Path) -> None:
        """Publish every adapter folder in `directory` whose content is not stored yet.

        Raises SettingsError naming a folder that is refused.
        """
        for folder in adapter_folders(directory):
            try:
                await self._publish_once(folder)
            except InvalidAdapterError as error:
                first, *more = error.problems
                and_more = f" (and {len(more)} more problems)" if more else ""
                raise SettingsError(f"adapters: {folder} is refused: {first}{and_more}") from error

    async def check(self, request: PublishRequest) -> CheckReply:
        """A dry run of `publish`."""
        self._check_name(request.name)
        report = await self._report(request)
        manifest = report.manifest
        return CheckReply(
            loads=report.loads,
            problems=[ProblemReply(where=p.where, message=p.message) for p in report.problems],
            unknown_keys=list(report.unknown_keys),
            notes=list(report.notes),
            digest=report.digest,
            size_bytes=report.size_bytes,
            device_bytes=device_bytes(manifest, self._info.base) if manifest else 0,
            rank_rows=manifest.rank_rows if manifest else 0,
            max_rank=manifest.max_rank if manifest else 0,
        )

    async def listing(self, *, tag: str | None = None) -> list[AdapterReply]:
        """All versions, or those with a tag."""
        return await self._replies(await self._run(self._store.list, tag=tag))

    async def show(self, reference: str) -> list[AdapterReply]:
        """All versions of a bare name, or the one version that is meant."""
        ref = AdapterRef.parse(reference)
        record = await self._run(self._store.resolve, ref)
        if ref == AdapterRef(name=ref.name):
            return await self._replies(await self._run(self._store.list, name=record.name))
        return await self._replies([record])

    def newest(self) -> list[AdapterRecord]:
        """The newest version of each adapter that fits the base, by name. Blocks."""
        newest = {record.name: record for record in self._store.list()}  # by version, ascending
        return [record for record in newest.values() if self._mixtures.fits(record)]

    async def delete(self, reference: str, *, force: bool) -> DeletedReply:
        """Delete a version, or all of a bare name, and the bytes that nothing points at any more.

        Raises AdapterInUseError while it is pinned or requests use it, unless forced.
        """
        ref = AdapterRef.parse(reference)
        if ref.name is None:
            raise InputError("name", repr(reference), "delete by name or name@version")
        record = await self._run(self._store.resolve, ref)
        is_bare_name = ref == AdapterRef(name=ref.name)
        used = frozenset() if force else await self._used()
        remove = partial(self._store.delete, force=force, in_use=used.__contains__)
        deleted = await self._run(remove, record.name, None if is_bare_name else record.version)
        for record in deleted:
            await self._forget(record)
        log.info("deleted", adapters=[record.label for record in deleted])
        freed = 0
        # Whoever is in use is not known now, or the disk is full: the next delete collects.
        with suppress(EngineError, StoreUnavailableError, StoreFullError):
            freed = await self.collect()
        return DeletedReply(deleted=[record.label for record in deleted], freed_bytes=freed)

    async def collect(self) -> int:
        """Remove stored bytes that no version points at; returns how many.

        What running requests use stays: they may have to load it again.
        """
        used = await self._used()
        return await self._run(self._store.gc, in_use=used.__contains__)

    async def set_alias(self, name: str, alias: str, version: int) -> AdapterReply:
        """Point an alias at a version."""
        return await self._reply(await self._run(self._store.set_alias, name, alias, version))

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        await self._run(self._store.delete_alias, name, alias)

    async def load(self, reference: str) -> ResidencyReply:
        """Bring an adapter to the device."""
        record = await self._mixtures.record(reference)
        return ResidencyReply.of(await self._engine.call(LoadAdapter(record.digest)))

    async def pin(self, reference: str, *, pinned: bool) -> ResidencyReply:
        """Keep an adapter on the device, or let it go again."""
        record = await self._mixtures.record(reference)
        return ResidencyReply.of(await self._engine.call(Pin(record.digest, pinned)))

    async def unload(self, reference: str) -> UnloadReply:
        """Drop an adapter from device and host."""
        record = await self._mixtures.record(reference)
        freed = await self._engine.call(Unload(record.digest))
        return UnloadReply(name=record.label, freed_bytes=freed)

    async def merge(self, body: FixedMixture) -> MergedReply:
        """Fold a mixture into the base."""
        mixture = await self._mixtures.resolve_fixed(body.adapters)
        try:
            return await self._merged_reply(await self._engine.call(Merge(mixture)))
        except MixtureError as error:  # in the client's words
            message = str(error)
            for digest, item in zip(mixture.digests, body.adapters, strict=True):
                message = message.replace(digest, item.name)
            raise MixtureError(message) from error

    async def merged(self) -> MergedReply:
        """The mixture that the base weights hold, if any."""
        return await self._merged_reply(await self._engine.call(GetMerged()))

    async def restore(self) -> MergedReply:
        """Put the base's own weights back."""
        return await self._merged_reply(await self._engine.call(Merge(None)))

    async def _merged_reply(self, state: MergedState) -> MergedReply:
        digests = () if state.mixture is None else state.mixture.digests
        labels = {record.digest: record.label for record in await self._run(self._store.list)}
        return MergedReply.of(state, [labels.get(digest, digest) for digest in digests])

    async def _publish_once(self, folder: Path) -> None:
        selection = await self._run(select, folder)
        if selection.note is not None:
            log.info("folder", path=str(folder), note=selection.note)
        request = PublishRequest(folder.name, selection.files)
        report = await self._report(request)
        stored: Sequence[AdapterRecord] = ()
        if not report.problems:
            stored = await self._run(self._store.list, name=folder.name)
        if report.digest not in {record.digest for record in stored}:
            # The encoder starts after the server: nobody waits for it here.
            record, report = await self._publish(request)
            for note in report.notes:
                log.info("folder", path=str(folder), note=note)
            await self._states.make(record)

    async def _publish(self, request: PublishRequest) -> tuple[AdapterRecord, CheckReport]:
        self._check_name(request.name)
        reports: list[CheckReport] = []
        publish = partial(
            self._store.publish,
            base=self._info.base,
            texts=request.texts,
            tags=request.tags,
            on_report=reports.append,
        )
        record = await self._run(publish, request.name, request.upload)
        log.info("published", adapter=record.label, digest=record.digest)
        return record, reports[0]

    async def _report(self, request: PublishRequest) -> CheckReport:
        check = partial(
            self._store.check, base=self._info.base, texts=request.texts, tags=request.tags
        )
        return await self._run(check, request.name, request.upload)

    def _check_name(self, name: str) -> None:
        if name == self._base_name:
            raise InputError("name", repr(name), "is the base model's name: choose another")

    async def _reply(self, record: AdapterRecord) -> AdapterReply:
        return (await self._replies([record]))[0]

    async def _replies(self, records: Sequence[AdapterRecord]) -> list[AdapterReply]:
        residency: dict[str, AdapterResidency] = {}
        with suppress(EngineError):  # while the engine restarts nothing is resident
            residency = {entry.digest: entry for entry in await self._engine.call(GetResidency())}
        newest = await self._run(self.newest)
        states = await self._states.of(records, newest)
        return await self._run(_replies, records, residency, states)

    async def _run(self, work: Callable[P, Value], *args: P.args, **kwargs: P.kwargs) -> Value:
        return await self._threads.run(partial(work, *args, **kwargs))

    async def _used(self) -> frozenset[str]:
        """Digests that an admin has pinned, or that requests need: also those that still wait."""
        waited_for = self._mixtures.uses.digests
        entries = await self._engine.call(GetResidency())
        return waited_for.union(
            plain_digest(entry.digest) for entry in entries if entry.pinned or entry.users
        )

    async def _forget(self, record: AdapterRecord) -> None:
        self._states.forget(record)
        with suppress(EngineError):  # it is in use: the engine drops it when it needs the place
            await self._engine.call(Unload(record.digest))


def adapter_folders(directory: Path) -> list[Path]:
    """The folders in a directory that each hold an adapter."""
    return sorted({path.parent for name in _CONFIGS for path in directory.glob(f"*/{name}")})


def _replies(
    records: Sequence[AdapterRecord],
    residency: Mapping[str, AdapterResidency],
    states: Mapping[str, TextState],
) -> list[AdapterReply]:
    return [
        AdapterReply.of(record, residency.get(record.digest), states[record.digest])
        for record in records
    ]
