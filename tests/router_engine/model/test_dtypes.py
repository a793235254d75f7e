"""The format of a model that was asked for in none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from router_engine.model.dtypes import auto_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _auto(stored: object, device: torch.device = CPU, *, has_decoder: bool = True) -> object:
    config = SimpleNamespace(dtype=stored, hidden_size=64)
    return auto_dtype(config, device, has_decoder=has_decoder)


@pytest.mark.parametrize("stored", [torch.float16, "float16"])
def test_a_cpu_has_no_arithmetic_in_fp16(stored: object) -> None:
    assert _auto(stored) == torch.float32
    assert _auto(stored, CUDA) == "auto"


def test_the_decoder_reads_bf16_on_any_processor() -> None:
    assert _auto(torch.bfloat16) == "auto"


def test_by_transformers_code_bf16_is_kept_or_widened() -> None:
    """Which of them is a measurement: either is right."""
    assert _auto(torch.bfloat16, has_decoder=False) in ("auto", torch.float32)


@pytest.mark.parametrize("stored", [torch.float32, None, "no such format"])
def test_what_is_not_narrow_stays(stored: object) -> None:
    assert _auto(stored) == "auto"
