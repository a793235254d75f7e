"""Sample texts that were set after the publish, and what routers keep of an adapter's texts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from adapters_store.errors import AdapterNotFoundError
from adapters_store.metadata.database import Database
from adapters_store.metadata.schema import BLOBS, CENTROIDS, TEXTS
from adapters_store.texts import texts_digest
from adapters_store.types import StoredCentroid


class Texts:
    """Texts and centroids by the adapter's digest. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, digest: str, lines: bytes, num_texts: int) -> None:
        """Put texts (JSONL) in force in place of all others. Raises AdapterNotFoundError."""
        row = {"texts_digest": texts_digest(lines), "num_texts": num_texts, "lines": lines}

        def put(connection: Connection) -> None:
            _require(connection, digest)
            drop_later_texts(connection, digest)
            connection.execute(insert(TEXTS).values(digest=digest, **row))

        self._database.writing(put)

    def get(self, digest: str) -> tuple[str, bytes] | None:
        """(digest of the texts, JSONL) that were set later, or None where none were."""
        query = select(TEXTS.c.texts_digest, TEXTS.c.lines).where(TEXTS.c.digest == digest)
        row = self._database.reading(lambda connection: connection.execute(query).first())
        return None if row is None else (row.texts_digest, row.lines)

    def put_centroid(
        self, digest: str, encoder: str, texts: str, vector: bytes, examples: bytes | None
    ) -> None:
        """Keep what was made of `texts`, in place of anything else. AdapterNotFoundError."""
        row = {"texts": texts, "vector": vector, "examples": examples}

        def put(connection: Connection) -> None:
            _require(connection, digest)
            connection.execute(delete(CENTROIDS).where(_is_row(digest, encoder)))
            connection.execute(insert(CENTROIDS).values(digest=digest, encoder=encoder, **row))

        self._database.writing(put)

    def get_centroid(self, digest: str, encoder: str, texts: str) -> bytes | None:
        """The vector made of these texts, or None when there is none yet."""
        return self._one(CENTROIDS.c.vector, digest, encoder, texts)

    def get_examples(self, digest: str, encoder: str, texts: str) -> bytes | None:
        """The embeddings of single texts, or None where none are kept."""
        return self._one(CENTROIDS.c.examples, digest, encoder, texts)

    def centroids(self, encoder: str) -> dict[str, StoredCentroid]:
        """Every centroid under an encoder, by the adapter's digest."""
        query = select(CENTROIDS.c.digest, CENTROIDS.c.texts, CENTROIDS.c.vector)
        query = query.where(CENTROIDS.c.encoder == encoder)
        rows = self._database.reading(lambda connection: connection.execute(query).all())
        return {row.digest: StoredCentroid(row.texts, row.vector) for row in rows}

    def _one(
        self, column: ColumnElement[Any], digest: str, encoder: str, texts: str
    ) -> bytes | None:
        query = select(column).where(_is_row(digest, encoder), CENTROIDS.c.texts == texts)
        data: bytes | None = self._database.reading(lambda connection: connection.scalar(query))
        return data


def drop_later_texts(connection: Connection, digest: str) -> None:
    """Put the texts of the blob in force again."""
    connection.execute(delete(TEXTS).where(TEXTS.c.digest == digest))


def _is_row(digest: str, encoder: str) -> ColumnElement[bool]:
    return (CENTROIDS.c.digest == digest) & (CENTROIDS.c.encoder == encoder)


def _require(connection: Connection, digest: str) -> None:
    if not connection.scalar(select(BLOBS.c.digest).where(BLOBS.c.digest == digest)):
        raise AdapterNotFoundError(digest)
