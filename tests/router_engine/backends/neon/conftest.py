"""The compiler for ARM and its emulator, found once a session."""

from __future__ import annotations

import pytest

from tests.router_engine.backends.neon.emulator import Arm


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    return Arm.find(tmp_path_factory.mktemp("arm"))
