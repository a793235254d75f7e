"""The tables. `migrations/` brings a database to this state; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# A name outlives its versions, so that no version number is ever given twice.
ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("last_version", Integer, nullable=False),
)

BLOBS = Table(
    "blobs",
    METADATA,
    Column("digest", String(71), primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("num_texts", Integer, nullable=False),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("name", String(128), ForeignKey("adapters.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), ForeignKey("blobs.digest"), nullable=False),
    Column("created_at", Double, nullable=False),  # seconds since the epoch
    Index(None, "digest"),
)

TAGS = Table(
    "tags",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("tag", String(128), primary_key=True),
    ForeignKeyConstraint(
        ["name", "version"], ["versions.name", "versions.version"], ondelete="CASCADE"
    ),
    Index(None, "tag"),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
)

# Sample texts that were set after the publish, in place of those in the blob. None are a row too.
TEXTS = Table(
    "texts",
    METADATA,
    Column("digest", String(71), ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("texts_digest", String(71), nullable=False),  # "" for no texts
    Column("num_texts", Integer, nullable=False),
    Column("lines", LargeBinary, nullable=False),  # JSONL
)

# What routers keep of an adapter's texts under one encoder, float32 little endian.
CENTROIDS = Table(
    "centroids",
    METADATA,
    Column("digest", String(71), ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("encoder", String(128), primary_key=True),
    Column("texts", String(71), nullable=False, server_default=""),  # what it was made of
    Column("vector", LargeBinary, nullable=False),  # the mean embedding [d]
    Column("examples", LargeBinary),  # embeddings of single texts [n, d]
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("label", String(256), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("secret_hash", String(64), nullable=False),  # sha256, hex
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

# One row: how many write transactions there have been. What was read at a count holds until the
# next, in whichever process.
CHANGES = Table(
    "changes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
)
