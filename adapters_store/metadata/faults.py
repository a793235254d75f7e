"""Faults of a database, told by its own codes: away, full, or not to be used."""

from __future__ import annotations

import errno
import sqlite3
import tempfile
from pathlib import Path

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError

from adapters_store.errors import (
    StoreBrokenError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the device, in a quota, in a file
_PROBE = bytes(1 << 16)  # more than a file system may still find room for in a corner

# Primary result codes: https://www.sqlite.org/rescode.html
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_UNUSABLE = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR),
)
# SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL = "53100"
_AWAY = (
    *("08", "53", "57P"),  # connection, resources, shutdown and start
    *("40001", "40P01", "55P03", "57014"),  # serialization, deadlock, locks, statement_timeout
)
_SHUT = ("25006", "42501", "42P01", "3D000", "28", "58", "XX")


def fault_of(error: Exception, directory: Path | None) -> StoreError | None:
    """The error of the store that an error of a driver amounts to; None for one of our own making.

    directory: where an SQLite file lies.
    """
    if isinstance(error, TimeoutError):
        return StoreUnavailableError("the store's database has no connection free: try again")
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(origin, sqlite3.Error):
        return _of_sqlite(origin, directory)
    if hasattr(origin, "sqlstate"):  # psycopg's, which need not be installed
        is_connection = isinstance(error, OperationalError | InterfaceError)
        return _of_postgres(origin, origin.sqlstate, is_connection=is_connection)
    return None


def plain(error: BaseException) -> str:
    """A driver's message in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def is_full(directory: Path) -> bool:
    """Whether a directory has no room for some kilobytes."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as error:
        return error.errno in FULL
    return False


def _of_sqlite(error: sqlite3.Error, directory: Path | None) -> StoreError | None:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in _LOCKED:
        return _away(error)
    # A full disk shows in many ways: SQLite's shared memory, too, is a file.
    is_room = primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if primary == sqlite3.SQLITE_FULL or (is_room and directory and is_full(directory)):
        return _full(error)
    return _unusable(error) if primary in _UNUSABLE else None


def _of_postgres(
    error: BaseException, state: str | None, *, is_connection: bool
) -> StoreError | None:
    if state is None:
        return _away(error) if is_connection else None
    if state == _DISK_FULL:
        return _full(error)
    if state.startswith(_AWAY):
        return _away(error)
    return _unusable(error) if state.startswith(_SHUT) else None


def _away(error: BaseException) -> StoreError:
    return StoreUnavailableError(f"the store's database is locked or away: {plain(error)}")


def _full(error: BaseException) -> StoreError:
    return StoreFullError(f"the store's database has no room left on its disk: {plain(error)}")


def _unusable(error: BaseException) -> StoreError:
    return StoreBrokenError(f"the store's database cannot be used: {plain(error)}")
