"""Migrations make the tables that the code uses, and they travel with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from adapters_store.metadata import Database
from adapters_store.metadata.migrations.versions import v0001_initial
from adapters_store.metadata.schema import METADATA


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
    assert [step.revision for step in script.walk_revisions()] == [v0001_initial.revision]
