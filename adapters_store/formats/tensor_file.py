"""The safetensors file that folders of PEFT's format and of our own have in common."""

from __future__ import annotations

from adapters_store.errors import TensorFileError
from adapters_store.formats.base import AdapterFolder
from adapters_store.tensor_header import TensorHeader, read_header
from adapters_store.types import Problem

TENSOR_FILE = "adapter_model.safetensors"


def read_tensor_file(
    folder: AdapterFolder, config_file: str, problems: list[Problem]
) -> TensorHeader | None:
    """The header of the tensor file, or None and why in `problems`: missing, or malformed."""
    path = folder.files.get(TENSOR_FILE)
    if path is None:
        problems.append(Problem(TENSOR_FILE, f"is missing beside {config_file}"))
        return None
    try:
        return read_header(
            path,
            max_header_bytes=folder.limits.max_header_bytes,
            max_tensors=folder.limits.max_tensors,
        )
    except TensorFileError as error:
        problems += [Problem(TENSOR_FILE, text) for text in error.problems]
        return None
