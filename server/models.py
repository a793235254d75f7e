"""Which files the chosen base model and encoder are: names in, directories out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_engine.config import TINY_RANDOM
from server.settings import Settings, SettingsError

DEFAULT = "default"
NONE = "none"


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base model. `load` is what the engine's loader and AutoTokenizer read."""

    name: str  # as clients see it
    load: str


def base_files(settings: Settings) -> BaseFiles:
    """Raises AssetError when the default model has not been pulled, or a path does not exist."""
    from router_engine.model.assets import resolve_model

    found = resolve_model(settings.model, settings.cache_dir)
    if isinstance(found, str):
        return BaseFiles(found, found)
    return BaseFiles(found.stem if found.suffix == ".gguf" else found.resolve().name, str(found))


def load_tokenizer(files: BaseFiles) -> Any:
    """The base model's tokenizer, as transformers loads it."""
    if files.load == TINY_RANDOM:
        from router_engine.model.tiny import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    path = Path(files.load)
    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return AutoTokenizer.from_pretrained(files.load)


def encoder_directory(settings: Settings, scratch: Path) -> Path | None:
    """The sentence encoder's directory; None where none is to run.

    A tiny random encoder goes with the tiny random model; it is made in `scratch`. Raises
    AssetError when the default encoder has not been pulled, SettingsError when a directory does
    not exist, RouterInputError when it holds no encoder.
    """
    directory = _encoder_directory(settings, scratch)
    if directory is not None:
        from router_engine.routers.encoder.folder import EncoderFolder

        EncoderFolder.read(directory)
    return directory


def _encoder_directory(settings: Settings, scratch: Path) -> Path | None:
    name = settings.encoder
    if name == DEFAULT and settings.model == TINY_RANDOM:
        name = TINY_RANDOM
    if name == NONE:
        return None
    if name == TINY_RANDOM:
        from transformers.utils.logging import disable_progress_bar

        from router_engine.routers.encoder.tiny import save_tiny_encoder

        disable_progress_bar()  # it would write into the server's output
        return save_tiny_encoder(scratch / "encoder")
    if name == DEFAULT:
        from router_engine.model.assets import DEFAULT_ENCODER, require

        return require(DEFAULT_ENCODER, settings.cache_dir)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise SettingsError(
            f"encoder = {name!r}: use 'default', 'tiny-random', 'none' or a directory"
        )
    return path
