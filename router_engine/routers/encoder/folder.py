"""Reads how a sentence encoder's folder wants to be used; refuses what we do not compute."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_engine.errors import UnsupportedModelError
from router_engine.model.checkpoint import read_json_value
from router_engine.routers.errors import RouterInputError

MAX_PIECES = 256  # word pieces with special tokens, where the folder names no limit of its own
_MODULES = ("Transformer", "Pooling", "Normalize")
_MEAN = "pooling_mode_mean_tokens"


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """A folder that transformers reads, with the settings of sentence-transformers beside it.

    Without `modules.json` it is read as all-MiniLM-L6-v2 is used: masked mean pooling, then length
    1. The length matters not for a cosine, but it does for a centroid, a mean of embeddings.
    """

    model: Path  # holds config.json, the weights and tokenizer.json
    max_pieces: int = MAX_PIECES
    normalize: bool = True
    lowercase: bool = False

    @classmethod
    def read(cls, directory: Path) -> EncoderFolder:
        """Raises RouterInputError for what is no encoder, or does not pool by mean."""
        try:
            return cls._read(directory)
        except UnsupportedModelError as error:
            raise RouterInputError(str(error)) from error
        except (TypeError, ValueError, LookupError, AttributeError, OSError) as error:
            raise RouterInputError(
                f"{directory}: the encoder's settings cannot be read: {error!r}"
            ) from error

    @classmethod
    def _read(cls, directory: Path) -> EncoderFolder:
        modules = _read_json(directory / "modules.json") or [
            {"type": "Transformer", "path": ""},
            {"type": "Pooling", "path": "1_Pooling"},
            {"type": "Normalize", "path": ""},
        ]
        paths = {str(m["type"]).rpartition(".")[2]: directory / m["path"] for m in modules}
        unknown = [name for name in paths if name not in _MODULES]
        if unknown or not {"Transformer", "Pooling"} <= set(paths):
            raise RouterInputError(
                f"{directory / 'modules.json'} lists {', '.join(paths)}; an encoder must be "
                "Transformer, Pooling and, optionally, Normalize"
            )
        _require_mean_pooling(paths["Pooling"] / "config.json")
        model = paths["Transformer"]
        for name in ("config.json", "tokenizer.json"):
            if not (model / name).is_file():
                raise RouterInputError(f"{model} is no sentence encoder: it has no {name}")
            _read_json(model / name)
        settings = _read_json(model / "sentence_bert_config.json") or {}
        return cls(
            model,
            max_pieces=int(settings.get("max_seq_length") or MAX_PIECES),
            normalize="Normalize" in paths,
            lowercase=bool(settings.get("do_lower_case", False)),
        )

    def digest(self, dtype: str = "float32") -> str:
        """ "sha256:..." over weights, configuration, tokenizer, settings and number format."""
        state = hashlib.sha256(f"mean|{self.max_pieces}|{self.normalize}|{self.lowercase}".encode())
        if dtype != "float32":
            state.update(f"|{dtype}".encode())
        names = ("config.json", "tokenizer.json")
        files = [self.model / name for name in names] + sorted(
            path
            for pattern in ("*.safetensors", "pytorch_model*.bin")
            for path in self.model.glob(pattern)
        )
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            state.update(f"|{path.name}:{content}".encode())
        return f"sha256:{state.hexdigest()}"


def _require_mean_pooling(path: Path) -> None:
    config = _read_json(path)
    if config is None:
        return
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if "pooling_mode" in config:
        modes.append(f"pooling_mode_{config['pooling_mode']}_tokens")
    if modes != [_MEAN]:
        raise RouterInputError(f"{path} pools by {', '.join(modes)}; only {_MEAN} is computed")


def _read_json(path: Path) -> Any:
    return read_json_value(path) if path.is_file() else None
