"""Stores in temporary folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters_store.store import AdapterStore
from tests.adapters_store.servers import make_schema, postgres, s3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    """SQLite and a local directory."""
    opened = AdapterStore.open(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterStore]:
    """A store to check uploads with: that stores nothing, so one serves all tests."""
    opened = AdapterStore.open(tmp_path_factory.mktemp("checker"))
    yield opened
    assert opened.list() == []
    assert list(opened.blobs.blobs()) == []
    opened.close()


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """A running S3 endpoint."""
    with s3() as options:
        yield options


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running PostgreSQL server, its database empty at first."""
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None is the default, SQLite in the store's folder."""
    if request.param == "sqlite":
        return None
    return make_schema(request.getfixturevalue("postgres_url"))
