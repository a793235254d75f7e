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
