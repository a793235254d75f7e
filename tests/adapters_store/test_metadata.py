"""Migrations make the tables that the code uses, and they travel with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    ColumnClause,
    Connection,
    Engine,
    column,
    create_engine,
    insert,
    inspect,
    make_url,
    table,
)

from adapters_store.errors import StoreError
from adapters_store.metadata import Database, Texts
from adapters_store.metadata.migrations.versions import v0001_initial, v0002_texts, v0003_changes
from adapters_store.metadata.schema import METADATA
from tests.adapters_store.servers import make_schema

DIGEST = "sha256:" + "1" * 64


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, METADATA))


def test_migrations_make_the_schema_in_sqlite(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    with database.read() as connection:
        assert differences(connection) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()


@pytest.mark.postgres
def test_migrations_make_the_schema_in_postgresql(postgres_url: str) -> None:
    database = Database(postgres_url)
    assert database.dialect == "postgresql"
    with database.read() as connection:
        assert differences(connection) == []
    database.close()


def test_opening_again_keeps_everything(tmp_path: Path) -> None:
    for _ in range(2):
        database = Database(tmp_path / "x.db")
        with database.read() as connection:
            assert {*METADATA.tables, "alembic_version"} == set(
                inspect(connection).get_table_names()
            )
        database.close()


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Only one whose revision is our newest is opened without a migration."""
    Database(tmp_path / "x.db").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(StoreError, match="9999"):
        Database(tmp_path / "x.db")


def test_a_failed_write_is_rolled_back(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db")
    insert = METADATA.tables["adapters"].insert().values(name="x", last_version=1)

    def fail() -> None:
        with database.write() as connection:
            connection.execute(insert)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert connection.execute(METADATA.tables["adapters"].select()).all() == []
    database.close()


def test_every_folder_with_code_is_part_of_the_wheel() -> None:
    """setuptools packs packages only, and Alembic finds its steps by folder."""
    root = Path(str(files("adapters_store")))
    folders = {path.parent for path in root.rglob("*.py")}
    assert root / "metadata" / "migrations" / "versions" in folders
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_migrations_are_one_line_of_steps() -> None:
    script = ScriptDirectory(str(files("adapters_store.metadata.migrations")))
    found = [step.revision for step in script.walk_revisions()]
    assert found == [v0003_changes.revision, v0002_texts.revision, v0001_initial.revision]


def test_a_store_of_the_first_version_keeps_its_centroids(tmp_path: Path) -> None:
    _old_store(create_engine(f"sqlite:///{tmp_path / 'x.db'}"))
    _check_old_store(tmp_path / "x.db")


@pytest.mark.postgres
def test_a_postgresql_store_of_the_first_version_keeps_its_centroids(postgres_url: str) -> None:
    url = make_schema(postgres_url)
    _old_store(create_engine(make_url(url).set(drivername="postgresql+psycopg")))
    _check_old_store(url)


def _old_store(engine: Engine) -> None:
    """One adapter, published with texts, and its centroid, as revision 0001 has them."""
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "adapters_store.metadata:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, v0001_initial.revision)
        blob = {"digest": DIGEST, "manifest": "{}", "size_bytes": 1, "num_texts": 2}
        connection.execute(METADATA.tables["blobs"].insert().values(**blob))
        columns: list[ColumnClause[Any]] = [column(n) for n in ("digest", "encoder", "vector")]
        old = table("centroids", *columns)  # as they were
        connection.execute(insert(old).values(digest=DIGEST, encoder="e", vector=b"old"))
    engine.dispose()


def _check_old_store(url: str | Path) -> None:
    """Those texts are what the adapter's own digest covers."""
    database = Database(url)
    texts = Texts(database)
    assert texts.get_centroid(DIGEST, "e", DIGEST) == b"old"
    assert texts.get_examples(DIGEST, "e", DIGEST) is None
    assert texts.get(DIGEST) is None
    with database.read() as connection:
        assert differences(connection) == []
    database.close()
