"""What a model is, a folder or a GGUF file, is told by more than three letters of its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.config import ModelConfig
from router_engine.model.loader import load_model
from router_engine.model.tiny import save_tiny, tiny_config, tiny_model
from server.models import base_files, load_tokenizer
from server.settings import load_settings
from tests.support.gguf import save_gguf


@pytest.mark.parametrize("name", ["TINY.GGUF", "tiny.gguf"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_it_is_served(tmp_path: Path, name: str, *, is_folder: bool) -> None:
    path = tmp_path / name
    if is_folder:
        save_tiny(path)
    else:
        save_gguf(path, tiny_model(), "smollm")
    loaded = load_model(ModelConfig(str(path), dtype="float32"))
    assert loaded.model.config.vocab_size == tiny_config().vocab_size
    files = base_files(load_settings(model=str(path), cache=tmp_path))
    assert files.name == (name if is_folder else path.stem)
    assert load_tokenizer(files).encode("hi")
