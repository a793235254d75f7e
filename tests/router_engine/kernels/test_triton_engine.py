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


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen2", "float32"),
        ("qwen3", "float32"),
        ("mistral", "float32"),
        ("gpt2", "float32"),
        ("llama", "bfloat16"),
        ("llama-tied", "float16"),
    ],
)
def test_other_families_and_dtypes(run: Run, tmp_path: Path, family: str, dtype: DType) -> None:
    run(checks.check_short_engine, str(tmp_path), family, dtype)
