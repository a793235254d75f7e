"""The files of the chosen base model and encoder: names in, directories out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_store.home import expanded
from router_engine.config import TINY_RANDOM
from server.settings import Settings, SettingsError
from server.without_torch import without_torch

DEFAULT = "default"
NONE = "none"


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base model by its files."""

    name: str  # as clients see it
    load: str  # the path or name that the engine's loader and AutoTokenizer read
    revision: str | None = None  # of a hub id


def base_files(settings: Settings) -> BaseFiles:
    """Raises AssetError when the default model has not been pulled, or a path does not exist.

    UnsupportedModelError for files that cannot be served, as far as they can be seen at once.
    """
    from router_engine.assets import resolve_model
    from router_engine.model.checkpoint import check_model, is_gguf

    resolved = resolve_model(settings.model, settings.cache_dir)
    if isinstance(resolved, str):
        return BaseFiles(resolved, resolved, settings.revision)
    check_model(resolved)
    return BaseFiles(resolved.stem if is_gguf(resolved) else resolved.resolve().name, str(resolved))


def load_tokenizer(files: BaseFiles) -> Any:
    """The base model's tokenizer, as transformers loads it. Raises UnsupportedModelError."""
    if files.load == TINY_RANDOM:
        from router_engine.model.tiny_tokenizer import tiny_tokenizer

        return tiny_tokenizer()
    from router_engine.model.checkpoint import is_gguf

    needs_torch = is_gguf(Path(files.load))  # transformers reads GGUF with it
    with nullcontext() if needs_torch else without_torch():
        from router_engine.model.tokenizer import read_tokenizer

        return read_tokenizer(files.load, files.revision)


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
        from router_engine.assets import DEFAULT_ENCODER, require

        return require(DEFAULT_ENCODER, settings.cache_dir)
    path = expanded(settings.encoder)
    if not path.is_dir():
        raise SettingsError(f"encoder = {settings.encoder!r}: use 'default', 'none' or a directory")
    from router_engine.routers.encoder.folder import EncoderFolder

    EncoderFolder.read(path)
    return path


def encoder_name(settings: Settings) -> str:
    """The sentence encoder's name for clients; "none" where none is to run."""
    if settings.encoder == NONE:
        return NONE
    if is_tiny_encoder(settings):
        return TINY_RANDOM
    if settings.encoder == DEFAULT:
        from router_engine.assets import DEFAULT_ENCODER

        return DEFAULT_ENCODER
    return expanded(settings.encoder).resolve().name


def is_tiny_encoder(settings: Settings) -> bool:
    """Whether the sentence encoder is the tiny random one, which its worker makes."""
    return settings.encoder == DEFAULT and settings.model == TINY_RANDOM
