"""Whole engines on the Triton kernels: every family, merged and not, interpreted or on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.config import DType
from tests.router_engine.kernels import triton_engine as checks
from tests.router_engine.kernels.triton_process import Run

pytestmark = pytest.mark.slow


def test_graphs_serve_every_mixture(run: Run, tmp_path: Path) -> None:
    run(checks.check_graphs_serve_every_mixture, str(tmp_path))


def test_engine(run: Run, tmp_path: Path) -> None:
    run(checks.check_engine, str(tmp_path), "llama", "float32")


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3", "mistral", "gpt2"])
def test_other_families(run: Run, tmp_path: Path, family: str) -> None:
    run(checks.check_engine, str(tmp_path), family, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(run: Run, tmp_path: Path, dtype: DType) -> None:
    run(checks.check_engine, str(tmp_path), "llama", dtype)
