"""Where checks of Triton's kernels run."""

from __future__ import annotations

from tests.router_engine.kernels.triton_process import run

__all__ = ["run"]  # a fixture
