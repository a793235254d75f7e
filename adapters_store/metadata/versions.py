"""Versions, aliases and tags of adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from adapters_store.errors import AdapterNotFoundError
from adapters_store.manifest import manifest_to_json
from adapters_store.metadata.database import Database
from adapters_store.metadata.manifests import ManifestCache
from adapters_store.metadata.recent import Recent
from adapters_store.metadata.schema import ADAPTERS, ALIASES, BLOBS, TAGS, TEXTS, VERSIONS
from adapters_store.metadata.texts import drop_later_texts
from adapters_store.near_names import MOST_KNOWN, near_names
from adapters_store.types import AdapterManifest, AdapterRecord, AdapterRef

_SEPARATOR = ","  # occurs in no name, alias or tag


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A row to be: the next version of a name, whose blob is stored already."""

    name: str
    digest: str
    manifest: AdapterManifest
    size_bytes: int  # of the blob
    num_texts: int  # sample texts in the blob
    tags: Sequence[str] = ()


class Versions:
    """The names of the store. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._manifests = ManifestCache()
        # With the count of changes that they were read at: they hold until it moves.
        self._records: Recent[AdapterRef, tuple[int, AdapterRecord]] = Recent()

    def add(self, new: NewVersion, before_commit: Callable[[], None]) -> AdapterRecord:
        """Record the next version of a name.

        Texts that it brings are in force from now on, whatever was set for this digest before.
        `before_commit` runs inside the write transaction, when nobody can delete the blob; what
        it raises rolls everything back.
        """

        def add(connection: Connection) -> AdapterRecord:
            _ensure_blob(connection, new)
            if new.num_texts:
                drop_later_texts(connection, new.digest)
            version = _next_version(connection, new.name)
            connection.execute(
                insert(VERSIONS).values(
                    name=new.name, version=version, digest=new.digest, created_at=time.time()
                )
            )
            for tag in dict.fromkeys(new.tags):
                connection.execute(insert(TAGS).values(name=new.name, version=version, tag=tag))
            before_commit()
            return self._one(connection, _by_version(new.name, version))

        return self._database.writing(add)

    def resolve(self, refs: Sequence[AdapterRef]) -> list[AdapterRecord]:
        """The records that references mean now. Raises AdapterNotFoundError with near names.

        Every request asks, so what they meant is remembered until something is written.
        """

        def resolve(connection: Connection) -> list[AdapterRecord]:
            changes = self._database.changes(connection)
            return [self._resolve(connection, changes, ref) for ref in refs]

        return self._database.reading(resolve)

    def _resolve(self, connection: Connection, changes: int, ref: AdapterRef) -> AdapterRecord:
        remembered = self._records.get(ref)
        if remembered is not None and remembered[0] == changes:
            return remembered[1]
        row = connection.execute(_query(ref)).first()
        if row is None:
            raise AdapterNotFoundError(str(ref), _near(connection, ref))
        record = self._read(connection, [row])[0]
        self._records.put(ref, (changes, record))
        return record

    def records(self, *, name: str | None = None, tag: str | None = None) -> list[AdapterRecord]:
        """Records by name and version, of one name or with one tag if asked."""
        query = _records().order_by(VERSIONS.c.name, VERSIONS.c.version)
        if name is not None:
            query = query.where(VERSIONS.c.name == name)
        if tag is not None:
            tagged = select(TAGS.c.name).where(
                TAGS.c.name == VERSIONS.c.name,
                TAGS.c.version == VERSIONS.c.version,
                TAGS.c.tag == tag,
            )
            query = query.where(tagged.exists())
        return self._database.reading(
            lambda connection: self._read(connection, connection.execute(query).all())
        )

    def set_alias(self, name: str, alias: str, version: int) -> AdapterRecord:
        """Point an alias at a version: readers see the old one or the new one, never none."""

        def move(connection: Connection) -> AdapterRecord:
            ref = AdapterRef(name=name, version=version)
            if connection.execute(_query(ref)).first() is None:
                raise AdapterNotFoundError(str(ref), _near(connection, ref))
            is_alias = (ALIASES.c.name == name) & (ALIASES.c.alias == alias)
            moved = connection.execute(update(ALIASES).where(is_alias).values(version=version))
            if moved.rowcount == 0:
                connection.execute(insert(ALIASES).values(name=name, alias=alias, version=version))
            return self._one(connection, _by_version(name, version))

        return self._database.writing(move)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Raises AdapterNotFoundError when there is none."""

        def remove(connection: Connection) -> None:
            is_alias = (ALIASES.c.name == name) & (ALIASES.c.alias == alias)
            if connection.execute(delete(ALIASES).where(is_alias)).rowcount == 0:
                ref = AdapterRef(name=name, alias=alias)
                raise AdapterNotFoundError(str(ref), _near(connection, ref))

        self._database.writing(remove)

    def delete(
        self, name: str, version: int | None, allow: Callable[[Sequence[AdapterRecord]], None]
    ) -> list[AdapterRecord]:
        """Remove one version of a name, or all, with the aliases that point at them.

        `allow` sees the records first, inside the transaction, and raises to refuse.
        """
        query = _records().where(VERSIONS.c.name == name).order_by(VERSIONS.c.version)
        if version is not None:
            query = query.where(VERSIONS.c.version == version)

        def remove(connection: Connection) -> list[AdapterRecord]:
            records = self._read(connection, connection.execute(query).all())
            if not records:
                ref = AdapterRef(name=name, version=version)
                raise AdapterNotFoundError(str(ref), _near(connection, ref))
            allow(records)
            for record in records:
                for table in (ALIASES, TAGS, VERSIONS):
                    is_version = (table.c.name == name) & (table.c.version == record.version)
                    connection.execute(delete(table).where(is_version))
            return records

        return self._database.writing(remove)

    def drop_unreferenced(self, keep: Callable[[str], bool], drop: Callable[[str], int]) -> int:
        """Forget blobs that no version points at; the sum of what `drop(digest)` returns.

        All of it is one write transaction, so no version can come to point at a dropped blob.
        """
        referenced = select(VERSIONS.c.digest).where(VERSIONS.c.digest == BLOBS.c.digest)
        query = select(BLOBS.c.digest).where(~referenced.exists())
        freed = 0

        def forget(connection: Connection) -> None:
            nonlocal freed
            for digest in connection.scalars(query).all():
                if not keep(digest):
                    freed += drop(digest)
                    connection.execute(delete(BLOBS).where(BLOBS.c.digest == digest))

        self._database.writing(forget)
        return freed

    def drop_unknown(self, digests: Sequence[str], drop: Callable[[str], int]) -> int:
        """Call `drop(digest)` for those that were never recorded; the sum of what it returns."""

        def forget(connection: Connection) -> int:
            recorded = set(connection.scalars(select(BLOBS.c.digest)))
            return sum(drop(digest) for digest in digests if digest not in recorded)

        return self._database.writing(forget)

    def _one(self, connection: Connection, query: Select[Any]) -> AdapterRecord:
        return self._read(connection, [connection.execute(query).one()])[0]

    def _read(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[AdapterRecord]:
        manifests = self._manifests.get(connection, [row.digest for row in rows])
        return [
            AdapterRecord(
                name=row.name,
                version=row.version,
                digest=row.digest,
                manifest=manifests[row.digest],
                size_bytes=row.size_bytes,
                created_at=row.created_at,
                aliases=_split(row.aliases),
                tags=_split(row.tags),
                num_texts=row.num_texts,
                texts_digest=_texts_digest(row),
            )
            for row in rows
        ]


def _ensure_blob(connection: Connection, new: NewVersion) -> None:
    if connection.scalar(select(BLOBS.c.digest).where(BLOBS.c.digest == new.digest)) is None:
        connection.execute(
            insert(BLOBS).values(
                digest=new.digest,
                manifest=manifest_to_json(new.manifest).decode(),
                size_bytes=new.size_bytes,
                num_texts=new.num_texts,
            )
        )


def _next_version(connection: Connection, name: str) -> int:
    is_name = ADAPTERS.c.name == name
    last = connection.scalar(select(ADAPTERS.c.last_version).where(is_name))
    if last is None:
        connection.execute(insert(ADAPTERS).values(name=name, last_version=1))
        return 1
    connection.execute(update(ADAPTERS).where(is_name).values(last_version=last + 1))
    return int(last) + 1


def _records() -> Select[Any]:
    """Versions with their blob, aliases and tags, in one statement: one consistent look."""
    aliases = select(func.aggregate_strings(ALIASES.c.alias, _SEPARATOR)).where(
        ALIASES.c.name == VERSIONS.c.name, ALIASES.c.version == VERSIONS.c.version
    )
    tags = select(func.aggregate_strings(TAGS.c.tag, _SEPARATOR)).where(
        TAGS.c.name == VERSIONS.c.name, TAGS.c.version == VERSIONS.c.version
    )
    return select(
        VERSIONS,
        BLOBS.c.size_bytes,
        func.coalesce(TEXTS.c.num_texts, BLOBS.c.num_texts).label("num_texts"),
        TEXTS.c.texts_digest,
        aliases.scalar_subquery().label("aliases"),
        tags.scalar_subquery().label("tags"),
    ).select_from(
        VERSIONS.join(BLOBS, BLOBS.c.digest == VERSIONS.c.digest).outerjoin(
            TEXTS, TEXTS.c.digest == VERSIONS.c.digest
        )
    )


def _by_version(name: str, version: int) -> Select[Any]:
    return _records().where(VERSIONS.c.name == name, VERSIONS.c.version == version)


def _query(ref: AdapterRef) -> Select[Any]:
    if ref.digest is not None:
        query = _records().where(VERSIONS.c.digest == ref.digest)
        return query.order_by(VERSIONS.c.created_at.desc(), VERSIONS.c.version.desc()).limit(1)
    query = _records().where(VERSIONS.c.name == ref.name)
    if ref.version is not None:
        return query.where(VERSIONS.c.version == ref.version)
    if ref.alias is not None:
        pointed = select(ALIASES.c.version).where(
            ALIASES.c.name == ref.name, ALIASES.c.alias == ref.alias
        )
        return query.where(VERSIONS.c.version == pointed.scalar_subquery())
    return query.order_by(VERSIONS.c.version.desc()).limit(1)


def _texts_digest(row: Row[Any]) -> str:
    """Of the texts set later, else the adapter's own digest, which covers those in its blob."""
    if row.texts_digest is not None:
        return str(row.texts_digest)
    return str(row.digest) if row.num_texts else ""


def _split(joined: str | None) -> tuple[str, ...]:
    return tuple(sorted(joined.split(_SEPARATOR))) if joined else ()


def _near(connection: Connection, ref: AdapterRef) -> list[str]:
    """Versions and aliases of the name if it exists, else names that look like it."""
    if ref.name is None:
        return []
    versions = connection.scalars(
        select(VERSIONS.c.version).where(VERSIONS.c.name == ref.name).order_by(VERSIONS.c.version)
    ).all()
    if versions:
        aliases = connection.scalars(select(ALIASES.c.alias).where(ALIASES.c.name == ref.name))
        return [f"{ref.name}@{end}" for end in (*sorted(aliases), *versions[-5:])]
    alike = VERSIONS.c.name.startswith(ref.name[0], autoescape=True)
    # Those that begin alike come first: there may be thousands, and only so many are compared.
    query = (
        select(VERSIONS.c.name).group_by(VERSIONS.c.name).order_by(alike.desc(), VERSIONS.c.name)
    )
    names = connection.scalars(query.limit(MOST_KNOWN)).all()
    return near_names(ref.name, names, most=5)
