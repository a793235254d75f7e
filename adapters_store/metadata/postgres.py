"""Connections to PostgreSQL that give up: on a lock, on a statement, on a server without a word."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil, inf
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

_LEAST = 2.0  # seconds that a statement may take, however short the patience
_KEEPALIVE = 32_767  # seconds, the most that Linux takes
_SILENCE = 1.25  # times as long: the server says first what it gave up


class PatientConnection(psycopg.Connection[Any]):
    """A connection that closes, with OperationalError, once it has waited `patience` seconds.

    The limits that PostgreSQL keeps help nobody where its process, or the network, stands still.
    """

    patience = inf

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """See psycopg.Connection: all that waits for an answer waits here."""
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        end = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    self.close()
                    raise psycopg.OperationalError(f"no answer in {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


def postgres_engine(url: URL, patience: float, **pool: Any) -> Engine:
    """Connections whose waits end after about `patience` seconds, by what ends each kind of wait.

    What the URL says itself of connection parameters stays.
    """
    engine = create_engine(url, pool_pre_ping=True, connect_args=_limits(url, patience), **pool)
    event.listen(engine, "do_connect", partial(_connect, patience))
    event.listen(engine, "connect", partial(_configure, patience))
    return engine


def _limits(url: URL, patience: float) -> dict[str, int]:
    """libpq's own: for a server that takes no connection, and for a network that went away."""
    seconds = ceil(patience)
    limits = {
        "connect_timeout": seconds,
        "tcp_user_timeout": 1000 * seconds,
        "keepalives_idle": min(seconds, _KEEPALIVE),
        "keepalives_interval": min(seconds, _KEEPALIVE),
        "keepalives_count": 1,
    }
    return {name: limit for name, limit in limits.items() if name not in url.query}


@contextmanager
def unhurried(connection: Connection) -> Iterator[None]:
    """One transaction whose statements may take their time: a migration of a large table does."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, PatientConnection)
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    patience, driver.patience = driver.patience, inf
    try:
        yield
    finally:
        driver.patience = patience


def _connect(
    patience: float, _dialect: object, _record: object, args: Any, kwargs: Any
) -> PatientConnection:
    connection = PatientConnection.connect(*args, **kwargs)
    connection.patience = _SILENCE * max(patience, _LEAST)  # before SQLAlchemy's own first look
    return connection


def _configure(patience: float, connection: PatientConnection, _record: object) -> None:
    connection.autocommit = True  # or the settings would go with the first rollback
    connection.execute(f"SET lock_timeout = {ceil(1000 * patience)}")
    connection.execute(f"SET statement_timeout = {ceil(1000 * max(patience, _LEAST))}")
    connection.autocommit = False
