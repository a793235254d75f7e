"""The connection: dialects, transactions, their count, and migrations."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    RootTransaction,
    create_engine,
    event,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from adapters_store.errors import StoreError, StoreUnavailableError
from adapters_store.metadata.faults import fault_of, plain
from adapters_store.metadata.schema import CHANGES

DEFAULT_PATIENCE = 60.0  # seconds
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_CONNECTIONS = 24  # more than a server has threads that ask
_WRITE = "adaptermix_write"
_WRITER_LOCK = 0x61646D78  # any number: names our advisory lock in a shared PostgreSQL
_COUNT = select(CHANGES.c.count)
_COUNT_ONE_MORE = update(CHANGES).values(count=CHANGES.c.count + 1)
_AT_START = (SQLAlchemyError, CommandError, ImportError, UnicodeError)
# A bad URL, another version, no driver, a host that is none.

Value = TypeVar("Value")


class Database:
    """SQLite (WAL) or PostgreSQL. Readers never wait for writers; writers go one at a time.

    One writer at a time keeps "look, then write" true without retries; writes are rare and short.

    A database that is locked or away is waited for, and what it cut off is begun again, for
    `patience` seconds altogether; then StoreUnavailableError is raised. One that hangs is given up
    after about as long. StoreFullError and StoreBrokenError are raised at once.
    """

    def __init__(self, url: str | Path, patience: float = DEFAULT_PATIENCE) -> None:
        """Connect and migrate. Raises StoreError: bad URL, missing driver, no connection."""
        parsed = _parse(url)
        self._patience = patience
        is_file = parsed.get_backend_name() == "sqlite"
        self._directory = Path(str(parsed.database)).parent if is_file else None
        try:
            self._engine = _create(parsed, patience)
            # SQLite waits for no lock as it turns a new file to WAL: two that open it would meet.
            self._repeatedly(self._open) if is_file else self._open()
        except Exception as error:
            fault = fault_of(error, self._directory)
            if fault is None and not isinstance(error, _AT_START):
                raise
            kind = StoreError if fault is None else type(fault)
            raise kind(
                f"the database {parsed.render_as_string(hide_password=True)} cannot be opened: "
                f"{plain(error)}"
            ) from error

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction, tried once."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction, tried once: committed at the end, rolled back on an error."""
        with self._alone() as (connection, transaction):
            connection.execute(_COUNT_ONE_MORE)
            yield connection
            _commit(transaction)

    def reading(self, work: Callable[[Connection], Value]) -> Value:
        """The result of `work` in a read transaction, which may be begun several times."""

        def once() -> Value:
            with self.read() as connection:
                return work(connection)

        return self._patiently(once)

    def writing(self, work: Callable[[Connection], Value]) -> Value:
        """The result of `work` in the one write transaction, which may be begun several times."""

        def once() -> Value:
            with self.write() as connection:
                return work(connection)

        return self._patiently(once)

    @staticmethod
    def changes(connection: Connection) -> int:
        """The count of write transactions. Rows that are read after it are as new, or newer."""
        return int(connection.execute(_COUNT).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _alone(self) -> Iterator[tuple[Connection, RootTransaction]]:
        with (
            self._engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin() as transaction,
        ):
            if self.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _WRITER_LOCK})
            yield connection, transaction

    def _open(self) -> None:
        with self._alone() as (connection, _):
            _migrate(connection)

    def _patiently(self, once: Callable[[], Value]) -> Value:
        try:
            return self._repeatedly(once)
        except Exception as error:
            fault = fault_of(error, self._directory)
            if fault is None:
                raise
            raise fault from error

    def _repeatedly(self, once: Callable[[], Value]) -> Value:
        """The result of `once`. Raises its last error where patience ends or waiting is no use."""
        end = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return once()
            except Exception as error:
                is_late = time.monotonic() + pause > end
                fault = fault_of(error, self._directory)
                if is_late or not isinstance(fault, StoreUnavailableError):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _commit(transaction: RootTransaction) -> None:
    """Raises StoreUnavailableError where nobody can say whether it was done: not to be repeated."""
    try:
        transaction.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailableError(
                "the connection to the store's database was lost while a change was being "
                f"recorded: look whether it was before you send it again ({plain(error)})"
            ) from error
        raise


def _parse(url: str | Path) -> URL:
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url.absolute()))
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"database URL: {error}") from error
    except ValueError as error:  # of what stands for the port
        raise StoreError(f"database URL: the port is no number ({error})") from error
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


def _create(url: URL, patience: float) -> Engine:
    pool: dict[str, Any] = {"max_overflow": _CONNECTIONS, "pool_timeout": patience}
    if url.get_backend_name() != "sqlite":
        from adapters_store.metadata.postgres import postgres_engine  # its driver may be missing

        return postgres_engine(url, patience, **pool)
    engine = create_engine(url, connect_args={"timeout": patience}, **pool)
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
    config = _config()
    config.attributes["connection"] = connection
    if MigrationContext.configure(connection).get_current_heads() == _heads():
        return
    with _unhurried(connection):
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "adapters_store.metadata:migrations")
    config.set_main_option("path_separator", "os")
    return config


@functools.cache
def _heads() -> tuple[str, ...]:
    """The newest revisions; finding them loads every migration."""
    return tuple(ScriptDirectory.from_config(_config()).get_heads())


def _unhurried(connection: Connection) -> AbstractContextManager[None]:
    if connection.dialect.name == "sqlite":
        return nullcontext()
    from adapters_store.metadata.postgres import unhurried

    return unhurried(connection)
