"""The adapter folder that an import writes, and the files that it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adaptermix.training.importing.pickles import arrays_of, read_pickle
from adapters_store.errors import InvalidAdapterError
from adapters_store.formats.native import MANIFEST_FILE, NativeAdapter
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_to_json
from adapters_store.types import Problem
from adapters_store.upload import is_pointer


def check_out(out: Path) -> None:
    """Raise InvalidAdapterError where there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidAdapterError(
            [Problem("--out", f"{out} exists already: name a new or an empty folder")]
        )


def refuse_pointers(*files: Path) -> None:
    """Raise InvalidAdapterError for what Git LFS keeps elsewhere."""
    if pointers := [file.name for file in files if is_pointer(file)]:
        told = "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned"
        raise InvalidAdapterError([Problem(name, told) for name in pointers])


def write_tensors(out: Path, tensors: Mapping[str, NDArray[Any]], card: str) -> None:
    """The tensors and the folder's README.md."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), out / TENSOR_FILE, metadata={"format": "pt"})
    (out / "README.md").write_text(card, encoding="utf-8")


def write_native(out: Path, adapter: NativeAdapter, card: str) -> None:
    """A folder of our own format."""
    write_tensors(out, adapter.tensors, card)
    (out / MANIFEST_FILE).write_bytes(manifest_to_json(adapter.manifest))


def read_flat(path: Path) -> tuple[dict[str, NDArray[np.generic]], str]:
    """Tensors by name of a file that holds nothing else, and its sha256, hexadecimal.

    Raises InvalidAdapterError.
    """
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        state = read_pickle(stream)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InvalidAdapterError([Problem(path.name, "is no dict of tensors by name")])
    return arrays_of(state), sha256
