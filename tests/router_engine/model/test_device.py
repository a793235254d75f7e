"""A device that is not there is an error that says what to do, not another device."""

from __future__ import annotations

import pytest
import torch

from router_engine.config import ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.loader import load_model


@pytest.mark.parametrize(
    ("built_for", "words"),
    [(None, "built without CUDA"), ("13.0", "torch sees no GPU: install NVIDIA's driver")],
)
def test_cuda_must_be_there(
    built_for: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(UnsupportedModelError, match=words) as raised:
        load_model(ModelConfig(device="cuda"))
    assert "use device 'cpu'" in str(raised.value)


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(ModelConfig()).device == torch.device("cpu")
