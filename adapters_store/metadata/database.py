"""The connection: dialects, transactions, their count, and migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from adapters_store.errors import StoreError
from adapters_store.metadata.schema import CHANGES

_BUSY_SECONDS = 60
_WRITE = "adaptermix_write"
_WRITER_LOCK = 0x61646D78  # any number: names our advisory lock in a shared PostgreSQL
_COUNT = select(CHANGES.c.count)
_COUNT_ONE_MORE = update(CHANGES).values(count=CHANGES.c.count + 1)


class Database:
    """SQLite (WAL) or PostgreSQL. Readers never wait; writers go one at a time.

    One writer at a time keeps "look, then write" true without retries; writes are rare and short.
    """

    def __init__(self, url: str | Path) -> None:
        """Connect and migrate. Raises StoreError: bad URL, missing driver, no connection."""
        parsed = _parse(url)
        try:
            self._engine = _create(parsed)
            with self._alone() as connection:
                _migrate(connection)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(
                f"the database {parsed.render_as_string(hide_password=True)} cannot be opened: "
                f"{error}"
            ) from error

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction: committed at the end, rolled back on an error."""
        with self._alone() as connection:
            connection.execute(_COUNT_ONE_MORE)
            yield connection

    @staticmethod
    def changes(connection: Connection) -> int:
        """How many write transactions there were. What is read after it is as new, or newer."""
        return int(connection.execute(_COUNT).scalar_one())

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        with (
            self._engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            if self.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _WRITER_LOCK})
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _parse(url: str | Path) -> URL:
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url.absolute()))
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"database URL: {error}") from error
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StoreError(
            f"database URL: unknown kind {parsed.drivername!r}; use sqlite:///FILE or "
            "postgresql://USER@HOST/DATABASE"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("database URL: SQLite needs a file, sqlite:///FILE")
    return parsed


def _create(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the writer's place at once: a later upgrade from reading could fail as busy.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "adapters_store.metadata:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
