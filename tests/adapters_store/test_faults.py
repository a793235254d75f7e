"""A database that is locked, away, full or not to be used: waited for, and told apart."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from adapters_store.errors import (
    StoreBrokenError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from adapters_store.metadata import Database
from adapters_store.metadata.postgres import postgres_engine, unhurried
from adapters_store.store import AdapterStore
from tests.adapters_store.folders import BASE, adapter, tensors
from tests.adapters_store.servers import Postgres, make_schema, postgres_server
from tests.support.stopping import standing_still
from tests.support.waiting import HANG_SECONDS

SHORT = 0.2  # of what would wait for ever
LIMITS = ("connect_timeout", "tcp_", "keepalives_")
WRITES: dict[str, Callable[[AdapterStore], Any]] = {
    "publish": lambda store: store.publish("math", adapter(tensors(seed=3)), base=BASE),
    "alias": lambda store: store.set_alias("math", "stable", 1),
    "unalias": lambda store: store.delete_alias("math", "old"),
    "delete": lambda store: store.delete("math", 2),
    "texts": lambda store: store.set_texts("math", ["another text"]),
    "key": lambda store: store.create_key("me", "use"),
    "revoke": lambda store: store.revoke_key(store.list_keys()[0].id),
    "collect": lambda store: store.gc(),
}
READS: dict[str, Callable[[AdapterStore], Any]] = {
    "resolve": lambda store: store.resolve("math"),
    "list": lambda store: store.list(),
    "texts": lambda store: store.texts(store.resolve("math").digest),
    "verify": lambda store: store.verify_key("amx_" + "0" * 16 + "_" + "a" * 43),
    "keys": lambda store: store.list_keys(),
}


def filled(root: Path, **options: Any) -> AdapterStore:
    """A store with two versions, an alias and a key."""
    store = AdapterStore.open(root / "store", **options)
    for seed in (1, 2):
        store.publish("math", adapter(tensors(seed=seed)), base=BASE, texts=["a text"])
    store.set_alias("math", "old", 1)
    store.create_key("me", "admin")
    return store


@contextmanager
def locked(root: Path) -> Iterator[sqlite3.Connection]:
    """Another writer that does not end."""
    other = sqlite3.connect(root / "store" / "adapters.db", check_same_thread=False)
    other.isolation_level = None
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_locked_database_is_waited_for_and_told(tmp_path: Path) -> None:
    with closing(filled(tmp_path, patience=SHORT)) as store, locked(tmp_path):
        for write in WRITES.values():
            with pytest.raises(StoreUnavailableError, match="locked"):
                write(store)
        for read in READS.values():
            read(store)
        assert [record.label for record in store.list()] == ["math@1", "math@2"]
        assert len(list(store.blobs.blobs())) == 3  # the third could not be recorded


def test_what_waited_for_a_lock_is_done_once_it_opens(tmp_path: Path) -> None:
    with (
        closing(filled(tmp_path, patience=HANG_SECONDS)) as store,
        ThreadPoolExecutor(len(WRITES)) as pool,
    ):
        with locked(tmp_path) as other:
            done = [pool.submit(WRITES[name], store) for name in ("alias", "texts", "key")]
            other.execute("ROLLBACK")
        for future in done:
            future.result()
        assert store.resolve("math@stable").version == 1
        assert len(store.list_keys()) == 2


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_new_database_that_another_writes_is_waited_for(tmp_path: Path, lock: str) -> None:
    with closing(sqlite3.connect(tmp_path / "adapters.db", check_same_thread=False)) as other:
        other.isolation_level = None
        other.execute("CREATE TABLE begun (id)")  # not in WAL yet
        other.execute(lock)
        with pytest.raises(StoreUnavailableError, match=r"cannot be opened: .*locked"):
            AdapterStore.open(tmp_path, patience=SHORT)
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(AdapterStore.open, tmp_path, patience=HANG_SECONDS)
            time.sleep(SHORT)
            assert not opened.done()
            other.execute("ROLLBACK")
            with closing(opened.result()) as store:
                assert store.list() == []


def test_a_damaged_database_is_told_in_one_line(tmp_path: Path) -> None:
    filled(tmp_path).close()
    store = AdapterStore.open(tmp_path / "store", patience=SHORT)
    store.close()  # its connections: the next one reads the file
    file = tmp_path / "store" / "adapters.db"
    file.write_bytes(b"no database" * 4000)
    for use in (*READS.values(), *WRITES.values()):
        with pytest.raises(StoreBrokenError, match="cannot be used"):
            use(store)
    with pytest.raises(StoreError, match="cannot be opened") as told:
        AdapterStore.open(tmp_path / "store")
    assert "\n" not in str(told.value)


def test_a_read_only_database_can_be_read(tmp_path: Path) -> None:
    filled(tmp_path).close()
    url = f"sqlite:///file:{tmp_path / 'store' / 'adapters.db'}?mode=ro&uri=true"
    with closing(AdapterStore.open(tmp_path / "store", database_url=url)) as store:
        for read in READS.values():
            read(store)
        for write in WRITES.values():
            with pytest.raises(StoreBrokenError, match="readonly"):
                write(store)


@pytest.mark.parametrize("name", ["blobs", "adapters.db", "."])
def test_a_store_that_is_something_else_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    if name == ".":
        root.write_text("a file")
    elif name == "blobs":
        root.mkdir()
        (root / name).write_text("a file")
    else:
        (root / name).mkdir(parents=True)
    with pytest.raises(StoreError) as told:
        AdapterStore.open(root)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.mark.postgres
def test_a_restarted_postgres_is_waited_for(server: Postgres, tmp_path: Path) -> None:
    url = make_schema(server.url)
    with closing(filled(tmp_path, database_url=url, patience=HANG_SECONDS)) as store:
        with ThreadPoolExecutor(8) as pool:
            server.stop()
            uses = [WRITES["alias"], WRITES["key"], *READS.values()]
            done = [pool.submit(use, store) for use in uses]
            server.start()
            for future in done:
                future.result()
        assert store.resolve("math@stable").version == 1
        assert len(store.list_keys()) == 2


@pytest.mark.postgres
def test_a_postgres_that_stays_away_is_told(server: Postgres, tmp_path: Path) -> None:
    url = make_schema(server.url)
    with closing(filled(tmp_path, database_url=url, patience=SHORT)) as store:
        server.stop()
        try:
            for use in (*READS.values(), *WRITES.values()):
                with pytest.raises(StoreUnavailableError):
                    use(store)
        finally:
            server.start()
        assert store.resolve("math").version == 2


@pytest.mark.postgres
def test_connections_that_died_are_made_anew(server: Postgres, tmp_path: Path) -> None:
    url = make_schema(server.url)
    with closing(filled(tmp_path, database_url=url, patience=HANG_SECONDS)) as store:
        for use in (READS["resolve"], WRITES["alias"]):
            with _other(server) as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                    )
                )
            use(store)


@pytest.mark.postgres
def test_a_connection_that_dies_inside_a_transaction_costs_nothing(
    server: Postgres, tmp_path: Path
) -> None:
    url = make_schema(server.url)
    store = filled(tmp_path, database_url=url)
    database = Database(url, HANG_SECONDS)
    tries = []

    def once_cut_off(connection: Any) -> int:
        tries.append(1)
        if len(tries) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return Database.changes(connection)

    before = database.reading(Database.changes)
    assert database.reading(once_cut_off) == before
    tries.clear()
    assert database.writing(once_cut_off) == before + 1
    assert database.reading(Database.changes) == before + 1
    database.close()
    store.close()


@pytest.mark.postgres
def test_a_locked_table_is_told(server: Postgres, tmp_path: Path) -> None:
    url = make_schema(server.url)
    with closing(filled(tmp_path, database_url=url, patience=SHORT)) as store:
        schema = str(make_url(url).query["options"]).removeprefix("-csearch_path=")
        with _other(server) as connection:
            connection.execute(text(f"LOCK TABLE {schema}.changes, {schema}.api_keys"))
            for use in (READS["resolve"], READS["verify"], WRITES["alias"]):
                with pytest.raises(StoreUnavailableError, match="lock"):
                    use(store)
        READS["resolve"](store)


@pytest.mark.postgres
def test_a_postgres_that_hangs_is_told_and_its_threads_come_back(
    server: Postgres, tmp_path: Path
) -> None:
    url = make_schema(server.url)
    with closing(filled(tmp_path, database_url=url, patience=SHORT)) as store:
        database = Database(url, SHORT)
        # Side by side, as each takes its time; but for the writers, of which there is one.
        asked = [
            [(database.writing, _stopped), (database.writing, _asleep)],
            [(database.reading, _stopped)],
            [(database.reading, _asleep)],
        ]
        with ThreadPoolExecutor(len(asked)) as pool:
            told = [one for several in pool.map(_faults, asked) for one in several]
        limits = ("no answer in", "statement timeout", "no answer in", "statement timeout")
        assert all(limit in fault for limit, fault in zip(limits, told, strict=True)), told
        # Between two uses: it is found out as well, and another connection is there for the next.
        with stopped(server), ThreadPoolExecutor(len(READS)) as pool:
            for done in [pool.submit(use, store) for use in READS.values()]:
                with suppress(StoreUnavailableError):
                    done.result(HANG_SECONDS)
        database.close()
        assert store.resolve("math").version == 2


@pytest.mark.postgres
def test_a_network_that_goes_away_is_noticed(server: Postgres) -> None:
    assert limits_of(server.url) == {
        "connect_timeout": "7",
        "tcp_user_timeout": "7000",
        "keepalives_idle": "7",
        "keepalives_interval": "7",
        "keepalives_count": "1",
    }
    url = make_url(server.url).update_query_dict({"connect_timeout": "9"})
    assert limits_of(url.render_as_string(hide_password=False))["connect_timeout"] == "9"


def limits_of(url: str, patience: float = 7.0) -> dict[str, str]:
    """Of the driver."""
    with closing(Database(url, patience)) as database, database.read() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        given = raw.info.get_parameters()
    return {name: value for name, value in given.items() if name.startswith(LIMITS)}


@pytest.mark.postgres
def test_the_longest_patience_is_one_that_sockets_take(server: Postgres) -> None:
    for name in ("keepalives_idle", "keepalives_interval"):
        assert int(limits_of(server.url, 86_400.0)[name]) <= 32_767


@pytest.mark.postgres
def test_a_migration_may_take_its_time_and_nothing_else(server: Postgres) -> None:
    engine = postgres_engine(make_url(server.url).set(drivername="postgresql+psycopg"), SHORT)
    slow = text("SELECT pg_sleep(2.5)")  # longer than any statement may take

    def migrate() -> None:
        with engine.connect() as connection, connection.begin(), unhurried(connection):
            connection.execute(slow)

    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        migrated = pool.submit(migrate)
        with connection.begin(), pytest.raises(OperationalError, match="statement timeout"):
            connection.execute(slow)
        migrated.result()
        # The limit is back once a migration is done.
        with connection.begin(), unhurried(connection):
            connection.execute(text("SELECT 1"))
        with connection.begin():
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "2s"
    engine.dispose()


def _faults(asked: list[tuple[Callable[[Callable[[Any], Any]], Any], Any]]) -> list[str]:
    """What one use after the other is told."""
    told = []
    for how, work in asked:
        with pytest.raises(StoreUnavailableError) as fault:
            how(work)
        told.append(str(fault.value))
    return told


def _asleep(connection: Any) -> None:
    connection.execute(text("SELECT pg_sleep(10000)"))


def _stopped(connection: Any) -> None:
    """Have the process that serves the connection stand still, and ask it once more."""
    backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with standing_still([backend]):
        connection.execute(text("SELECT 1"))


@contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    """All processes that serve connections now stand still."""
    clients = text(
        "SELECT pid FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with _other(server) as connection:
        backends = connection.execute(clients).scalars().all()
    with standing_still(backends):
        yield


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", StoreFullError),
        ("53200", StoreUnavailableError),
        ("53300", StoreUnavailableError),
        ("57P01", StoreUnavailableError),
        ("40001", StoreUnavailableError),
        ("25006", StoreBrokenError),
        ("42501", StoreBrokenError),
        ("XX001", StoreBrokenError),
    ],
)
def test_what_postgres_says_is_told_apart(
    server: Postgres, tmp_path: Path, state: str, kind: type[StoreError]
) -> None:
    database = Database(make_schema(server.url), SHORT)
    statement = f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{state}'; END $$"
    with closing(database), pytest.raises(kind, match="so"):
        database.writing(lambda connection: connection.execute(text(statement)))


@contextmanager
def _other(server: Postgres) -> Iterator[Any]:
    engine = create_engine(make_url(server.url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()
