"""One server of the tiny random model with two adapters, and both clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.logging import configure
from tests.adaptermix.client.asking import Asker
from tests.server.foreign import Foreign, foreign_server
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

KINDS = ("Client", "AsyncClient")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """The servers' threads must not write into the output that a test captures."""
    configure("error", "console")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders: math and code."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: make_lora_folder(root / name, seed=seed)
        for seed, name in enumerate(("math", "code"), start=1)
    }


@pytest.fixture(scope="session")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that has the folders' adapters; a test leaves those as they are."""
    root = tmp_path_factory.mktemp("served")
    with serving(tiny_settings(root, adapters=folders["math"].parent)) as live:
        yield live


@pytest.fixture(params=KINDS)
def ask(request: pytest.FixtureRequest, served: Live) -> Asker:
    """Each client of that server."""
    return Asker(served.url, request.param == "AsyncClient")


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    with foreign_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def stranger(request: pytest.FixtureRequest, foreign: Foreign) -> Asker:
    """Each client of a server that is none of ours."""
    return Asker(foreign.url, request.param == "AsyncClient")
