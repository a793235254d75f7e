"""Reads a base model's tokenizer. Needs no torch, except for a GGUF file's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from router_engine.model.checkpoint import called, refused


def read_tokenizer(model: str, **options: Any) -> Any:
    """The tokenizer of a checkpoint's directory, a hub id or a GGUF file.

    `options` are those of `AutoTokenizer.from_pretrained`; a GGUF file's takes none. Raises
    UnsupportedModelError, in one line, whatever is wrong with it.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        from router_engine.model.gguf_tokenizer import load_gguf_tokenizer

        read = partial(load_gguf_tokenizer, path)
    else:
        from transformers import AutoTokenizer

        read = partial(AutoTokenizer.from_pretrained, model, trust_remote_code=False, **options)
    return refused(called(model), "its tokenizer cannot be loaded", read)
