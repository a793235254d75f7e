"""AdapterStore, the front door: publish, resolve, list, alias, delete, collect garbage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters_store.blobs import BlobStore, open_blobs
from adapters_store.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    InvalidAdapterError,
    StoreError,
    StoreFullError,
)
from adapters_store.formats import FormatRegistry
from adapters_store.limits import DEFAULT_LIMITS, StoreLimits
from adapters_store.metadata import ApiKeys, Database, NewVersion, Texts, Versions
from adapters_store.metadata.database import DEFAULT_PATIENCE
from adapters_store.names import require_names
from adapters_store.preparing import Preparer, Progress, no_progress
from adapters_store.texts import text_problems, texts_from_jsonl, texts_to_jsonl
from adapters_store.types import (
    AdapterRecord,
    AdapterRef,
    ApiKey,
    BaseModelSpec,
    CheckReport,
    KeyKind,
    SampleTexts,
    StoredCentroid,
)
from adapters_store.upload import PublishRequest, Upload

GRACE_SECONDS = 3600.0


def never(_digest: str) -> bool:
    """No adapter is in use."""
    return False


def ignore_report(_report: CheckReport) -> None:
    """The report is of no interest."""


class AdapterStore:
    """Adapters by name in a database, their bytes by digest in a blob store.

    A publish first puts the blob, then records the version in one transaction: killed at any
    moment, the store holds all of it or none. Safe from many threads and processes.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, limits: StoreLimits = DEFAULT_LIMITS
    ) -> None:
        self.blobs = blobs
        self._database = database
        self._versions = Versions(database)
        self._texts = Texts(database)
        self._limits = limits
        self._keys = ApiKeys(database)
        self._preparer = Preparer(blobs, FormatRegistry(), limits)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        database_url: str | None = None,
        blobs_url: str | None = None,
        blobs_options: Mapping[str, Any] | None = None,
        limits: StoreLimits = DEFAULT_LIMITS,
        patience: float = DEFAULT_PATIENCE,
    ) -> AdapterStore:
        """Open, create or migrate the store under `root`.

        Without URLs it is `root/adapters.db` (SQLite) and `root/blobs`; a remote blob store is
        read through `root/cache`. `patience` are the seconds that a database is waited for which
        is locked or away. Raises StoreError when one of them cannot be opened.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            blobs = open_blobs(
                blobs_url or root / "blobs", cache_dir=root / "cache", options=blobs_options
            )
        except OSError as error:  # such as a file of that name, or a full disk
            raise StoreError(f"store {root}: {error.strerror or error}") from error
        return cls(Database(database_url or root / "adapters.db", patience), blobs, limits)

    def close(self) -> None:
        """Close the database connections."""
        self._database.close()

    def publish(
        self,
        name: str,
        upload: Upload,
        *,
        base: BaseModelSpec,
        texts: Sequence[str] = (),
        tags: Sequence[str] = (),
        progress: Progress = no_progress,
        on_report: Callable[[CheckReport], None] = ignore_report,
    ) -> AdapterRecord:
        """Store an adapter as the next version of `name`.

        The same content again makes a new version with the same digest. `progress` is called with
        each stage, `on_report` with the report of an adapter that is stored. Raises
        InvalidAdapterError with every problem; then nothing is stored.
        """
        request = PublishRequest(name, upload, texts, tags)
        with self._preparer.prepare(request, base, progress) as prepared:
            report = prepared.report
            if report.manifest is None or report.digest is None:
                raise InvalidAdapterError(report.problems)
            digest = report.digest
            self.blobs.put(digest, prepared.folder)
            progress("stored")

            def before_commit() -> None:
                self._check_stored(digest, prepared.folder)
                progress("recorded")

            new = NewVersion(
                name, digest, report.manifest, report.size_bytes, prepared.num_texts, tags
            )
            try:
                record = self._versions.add(new, before_commit)
            except StoreFullError:
                self._take_back(digest)
                raise
            on_report(report)
            return record

    def check(
        self,
        name: str,
        upload: Upload,
        *,
        base: BaseModelSpec,
        texts: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> CheckReport:
        """A dry run of `publish`: every problem, and what the adapter would cost."""
        request = PublishRequest(name, upload, texts, tags)
        with self._preparer.prepare(request, base) as prepared:
            return prepared.report

    def resolve(self, ref: AdapterRef | str) -> AdapterRecord:
        """The version that a reference means now.

        Raises InvalidReferenceError, or AdapterNotFoundError with near names.
        """
        return self.resolve_all([ref])[0]

    def resolve_all(self, refs: Sequence[AdapterRef | str]) -> list[AdapterRecord]:
        """The versions that references mean, all at one moment. Raises as `resolve`."""
        parsed = [AdapterRef.parse(ref) if isinstance(ref, str) else ref for ref in refs]
        return self._versions.resolve(parsed)

    def list(self, *, name: str | None = None, tag: str | None = None) -> list[AdapterRecord]:
        """All versions by name and number, of one name or with one tag if asked.

        Raises StoreError for what is no name and no tag.
        """
        require_names(name=name, tag=tag)
        return self._versions.records(name=name, tag=tag)

    def get(self, digest: str) -> AdapterRecord:
        """The newest version that holds this digest. Raises AdapterNotFoundError."""
        return self.resolve(digest)

    def set_alias(self, name: str, alias: str, version: int) -> AdapterRecord:
        """Point `name@alias` at a version, in one step for all readers.

        Raises AdapterNotFoundError, or StoreError when the alias is no name or is a number.
        """
        require_names(name=name, alias=alias)
        if alias.isdecimal():
            raise StoreError(f"alias: {alias!r} is a number, so it would read as a version")
        return self._versions.set_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Raises AdapterNotFoundError, StoreError for what is no name."""
        require_names(name=name, alias=alias)
        self._versions.delete_alias(name, alias)

    def delete(
        self,
        name: str,
        version: int | None = None,
        *,
        force: bool = False,
        in_use: Callable[[str], bool] = never,
    ) -> Sequence[AdapterRecord]:
        """Remove one version, or all of a name; its bytes go at the next `gc`.

        Unless forced, raises AdapterInUseError while `in_use(digest)`, or while an alias points
        at the one version. Raises AdapterNotFoundError.
        """

        def allow(records: Sequence[AdapterRecord]) -> None:
            for record in records:
                if in_use(record.digest):
                    raise AdapterInUseError(
                        f"{record.label} is pinned or in use; unpin it, wait, or force"
                    )
                if version is not None and record.aliases:
                    raise AdapterInUseError(
                        f"{record.label} is what the aliases {', '.join(record.aliases)} point at; "
                        "move them first, or force"
                    )

        return self._versions.delete(name, version, no_check if force else allow)

    def gc(
        self, *, in_use: Callable[[str], bool] = never, grace_seconds: float = GRACE_SECONDS
    ) -> int:
        """Remove the bytes of adapters that no version points at; returns how many bytes.

        Leaves alone what is in use, and what was put but not recorded less than `grace_seconds`
        ago: it is being published.
        """
        freed = self._versions.drop_unreferenced(in_use, self.blobs.delete)
        oldest = time.time() - grace_seconds
        stale = [blob.digest for blob in self.blobs.blobs() if blob.modified_at < oldest]
        freed += self._versions.drop_unknown(stale, self.blobs.delete)
        return freed + self.blobs.sweep()

    def set_texts(self, ref: AdapterRef | str, texts: Sequence[str]) -> AdapterRecord:
        """Put sample texts in force in place of all others; none take them away.

        They hold for every version of the same digest, which stays as it is. Raises
        InvalidAdapterError with every problem, and what `resolve` raises.
        """
        problems = text_problems(texts, self._limits)
        if problems:
            raise InvalidAdapterError(problems)
        record = self.resolve(ref)
        self._texts.set(record.digest, texts_to_jsonl(texts), len(texts))
        return self.resolve(AdapterRef(name=record.name, version=record.version))

    def sample_texts(self, digest: str) -> SampleTexts:
        """The sample texts in force: those set last, else those published with the adapter.

        Raises AdapterNotFoundError.
        """
        later = self._texts.get(digest)
        if later is not None:
            return SampleTexts(later[0], tuple(texts_from_jsonl(later[1])))
        files = self.blobs.fetch(digest)
        texts = [] if files.texts is None else texts_from_jsonl(files.texts.read_bytes())
        return SampleTexts(digest if texts else "", tuple(texts))

    def texts(self, digest: str) -> Sequence[str]:
        """The sample texts in force. Raises AdapterNotFoundError."""
        return list(self.sample_texts(digest).texts)

    def put_centroid(
        self,
        digest: str,
        encoder_digest: str,
        texts_digest: str,
        vector: bytes,
        examples: bytes | None = None,
    ) -> None:
        """Keep what an encoder makes of an adapter's texts; float32, little endian.

        `vector` is their mean embedding [d], `examples` the embeddings of some of them [n, d].
        What was made of other texts is dropped. Raises AdapterNotFoundError.
        """
        self._texts.put_centroid(digest, encoder_digest, texts_digest, vector, examples)

    def get_centroid(self, digest: str, encoder_digest: str, texts_digest: str) -> bytes | None:
        """The centroid of just these texts, or None when it was not computed yet."""
        return self._texts.get_centroid(digest, encoder_digest, texts_digest)

    def get_examples(self, digest: str, encoder_digest: str, texts_digest: str) -> bytes | None:
        """The examples of just these texts, or None when there are none yet."""
        return self._texts.get_examples(digest, encoder_digest, texts_digest)

    def centroids(self, encoder_digest: str) -> Mapping[str, StoredCentroid]:
        """Every centroid under an encoder, by the adapter's digest."""
        return self._texts.centroids(encoder_digest)

    def create_key(self, label: str, kind: KeyKind) -> tuple[ApiKey, str]:
        """A new API key and its secret, which is shown here and never again."""
        return self._keys.create(label, kind)

    def verify_key(self, secret: str) -> ApiKey | None:
        """The key in force that a secret belongs to, or None."""
        return self._keys.verify(secret)

    def list_keys(self) -> Sequence[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        return self._keys.list()

    def revoke_key(self, key_id: str) -> ApiKey:
        """Take a key out of force. Raises KeyNotFoundError."""
        return self._keys.revoke(key_id)

    def discard_key(self, key_id: str) -> None:
        """Forget a key whose secret nobody got. Raises KeyNotFoundError."""
        self._keys.discard(key_id)

    def has_keys(self) -> bool:
        """Whether any key is in force."""
        return self._keys.exist()

    def _take_back(self, digest: str) -> None:
        """Remove a blob that could not be recorded; what cannot be done now is left to `gc`."""
        with suppress(StoreError, OSError):
            self._versions.drop_unknown([digest], self.blobs.delete)

    def _check_stored(self, digest: str, staged: Path) -> None:
        """Under the writers' lock: a collection may have taken the blob since it was put."""
        if self.blobs.contains(digest):
            return
        if not staged.exists():
            raise AdapterNotFoundError(digest)
        self.blobs.put(digest, staged)


def no_check(_records: Sequence[AdapterRecord]) -> None:
    """Allow every delete."""
