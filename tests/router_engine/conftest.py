"""The fixtures of engines, where torch is installed: scheduling and kv run without it."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torch") is not None:
    from tests.router_engine.engine_fixtures import (
        ALL_LINEARS,
        RANKS,
        WITHOUT_DECODER,
        MakeEngine,
        MakeHarness,
        family_folder,
        folders,
        interpreter,
        kernel_cache,
        make_engine,
        make_harness,
        path,
        path_cache,
    )

    __all__ = [
        "ALL_LINEARS",
        "RANKS",
        "WITHOUT_DECODER",
        "MakeEngine",
        "MakeHarness",
        "family_folder",
        "folders",
        "interpreter",
        "kernel_cache",
        "make_engine",
        "make_harness",
        "path",
        "path_cache",
    ]
