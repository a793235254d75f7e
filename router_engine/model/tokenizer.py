"""Reads a base model's tokenizer. Needs no torch, except for a GGUF file's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from router_engine.hub import place_of
from router_engine.model.checkpoint import called, is_gguf, refused


def read_tokenizer(model: str, revision: str | None = None, **options: Any) -> Any:
    """The tokenizer of a checkpoint's directory, a hub id or a GGUF file.

    revision: branch, tag or commit of a hub id. `options` are those of
    `AutoTokenizer.from_pretrained`; a GGUF file's takes none. Raises UnsupportedModelError, in one
    line, whatever is wrong with it.
    """
    place, of_the_hub = place_of(model, revision)
    path = Path(place)
    if is_gguf(path):
        from router_engine.model.gguf_tokenizer import load_gguf_tokenizer

        read = partial(load_gguf_tokenizer, path)
    else:
        from transformers import AutoTokenizer

        read = partial(
            AutoTokenizer.from_pretrained, place, trust_remote_code=False, **options, **of_the_hub
        )
    name = called(model)
    tokenizer = refused(name, "its tokenizer cannot be loaded", read)
    refused(name, "its tokenizer cannot read text", partial(_try, tokenizer))
    return tokenizer


def _try(tokenizer: Any) -> None:
    """Raises what the library does where not even a word of the tokenizer's own can be read.

    Other texts may still be none to it; who sends one is told.
    """
    ids = tokenizer.get_vocab().values()
    if not ids:
        raise ValueError("it has no tokens")
    special = frozenset(tokenizer.all_special_ids)
    word = min((number for number in ids if number not in special), default=min(ids))
    tokenizer.encode(tokenizer.decode([word]))
