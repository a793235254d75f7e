"""Which files the chosen base model and encoder are: names in, directories out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapters_store.home import expanded
from router_engine.config import TINY_RANDOM
from server.settings import Settings, SettingsError
from server.torchless import torch_hidden

DEFAULT = "default"
NONE = "none"


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base model. `load` is what the engine's loader and AutoTokenizer read."""

    name: str  # as clients see it
    load: str


def base_files(settings: Settings) -> BaseFiles:
    """Raises AssetError when the default model has not been pulled, or a path does not exist.

    UnsupportedModelError for files that cannot be served, as far as they can be seen at once.
    """
    from router_engine.model.assets import resolve_model
    from router_engine.model.checkpoint import check_model, is_gguf

    found = resolve_model(settings.model, settings.cache_dir)
    if isinstance(found, str):
        return BaseFiles(found, found)
    check_model(found)
    return BaseFiles(found.stem if is_gguf(found) else found.resolve().name, str(found))


def load_tokenizer(files: BaseFiles) -> Any:
    """The base model's tokenizer, as transformers loads it. Raises UnsupportedModelError."""
    if files.load == TINY_RANDOM:
        from router_engine.model.tiny_tokenizer import tiny_tokenizer

        return tiny_tokenizer()
    path = Path(files.load)
    from router_engine.model.checkpoint import called, is_gguf, refused

    with nullcontext() if is_gguf(path) else torch_hidden():  # transformers reads GGUF with torch
        from transformers import AutoTokenizer

        if is_gguf(path):
            from router_engine.model.gguf_tokenizer import load_gguf_tokenizer

            read = partial(load_gguf_tokenizer, path)
        else:
            read = partial(AutoTokenizer.from_pretrained, files.load, trust_remote_code=False)
        name = called(files.load)
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


def encoder_directory(settings: Settings, scratch: Path) -> Path | None:
    """The sentence encoder's directory; None where none is to run.

    With the tiny random model goes a tiny random encoder, which its worker makes in `scratch`.
    Raises AssetError when the default encoder has not been pulled, SettingsError when a directory
    does not exist, RouterInputError when it holds no encoder.
    """
    if settings.encoder == NONE:
        return None
    if is_tiny_encoder(settings):
        return scratch / "encoder"
    if settings.encoder == DEFAULT:
        from router_engine.model.assets import DEFAULT_ENCODER, require

        return require(DEFAULT_ENCODER, settings.cache_dir)
    path = expanded(settings.encoder)
    if not path.is_dir():
        raise SettingsError(f"encoder = {settings.encoder!r}: use 'default', 'none' or a directory")
    from router_engine.routers.encoder.folder import EncoderFolder

    EncoderFolder.read(path)
    return path


def encoder_name(settings: Settings) -> str:
    """What to call the sentence encoder; "none" where none is to run."""
    if settings.encoder == NONE:
        return NONE
    if is_tiny_encoder(settings):
        return TINY_RANDOM
    if settings.encoder == DEFAULT:
        from router_engine.model.assets import DEFAULT_ENCODER

        return DEFAULT_ENCODER
    return expanded(settings.encoder).resolve().name


def is_tiny_encoder(settings: Settings) -> bool:
    """Whether the sentence encoder is the tiny random one, which its worker makes."""
    return settings.encoder == DEFAULT and settings.model == TINY_RANDOM
