"""Stores in temporary folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_store.store import AdapterStore


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
