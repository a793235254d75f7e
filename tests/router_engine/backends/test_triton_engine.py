"""What the parity tests leave open of engines on the Triton kernels: graphs, other dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.config import DType
from tests.router_engine.backends import triton_engine as checks
from tests.router_engine.kernels.triton_process import Run

pytestmark = pytest.mark.slow


def test_graphs_serve_every_mixture(run: Run, tmp_path: Path) -> None:
    run(checks.check_graphs_serve_every_mixture, str(tmp_path))


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_attention_by_flashinfer(
    run: Run, tmp_path: Path, family: str, *, enforce_eager: bool
) -> None:
    """mistral's has a window."""
    run(checks.check_flashinfer, str(tmp_path), family, enforce_eager=enforce_eager)


def test_steps_ahead(run: Run, tmp_path: Path) -> None:
    run(checks.check_steps_ahead, str(tmp_path))


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("llama-tied", "float16")])
def test_other_dtypes(run: Run, tmp_path: Path, family: str, dtype: DType) -> None:
    run(checks.check_dtype, str(tmp_path), family, dtype)


def test_a_wrong_decoder_is_not_used(run: Run, tmp_path: Path) -> None:
    run(checks.check_a_wrong_decoder_is_not_used, str(tmp_path))


def test_a_key_that_a_llama_ignores(run: Run, tmp_path: Path) -> None:
    run(checks.check_a_key_that_a_llama_ignores, str(tmp_path))
