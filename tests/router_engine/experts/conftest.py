"""Engines on the paths that run every kind of expert."""

from __future__ import annotations

import pytest

from tests.router_engine import paths
from tests.router_engine.paths import EnginePath, path_params

# Whatever runs every kind of expert belongs here, and all tests of this folder run on it.
PATHS = (paths.REFERENCE, paths.CPU, paths.INT8, paths.TRITON, paths.CUDA)


@pytest.fixture(params=path_params(*PATHS))
def path(request: pytest.FixtureRequest) -> EnginePath:
    """The path that a test's engines take."""
    chosen: EnginePath = request.param
    return chosen
