"""Copies of the base's own weights in uploads, told by digest in the formats that matter.

A copy is the base's own where it holds the very numbers that are served, in its own format or in
that of the base: then to apply it and to leave it out is the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters_store.tensor_header import TensorInfo
from adapters_store.types import EmbeddingSpec

FORMATS = ("F32", "F16", "BF16")
_CHUNK = 4 << 20  # bytes; a whole number of numbers


def is_own(path: Path, tensor: TensorInfo, embedding: EmbeddingSpec) -> bool:
    """Whether a tensor of a safetensors file is a copy of the base's weight. Reads it once."""
    if tensor.shape != embedding.shape or tensor.dtype not in FORMATS:
        return False
    as_sent, as_served = hashlib.sha256(), hashlib.sha256()
    left = tensor.nbytes
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        while left and (chunk := stream.read(min(left, _CHUNK))):
            left -= len(chunk)
            as_sent.update(chunk)
            as_served.update(_narrowed(_widened(chunk, tensor.dtype), embedding.dtype).tobytes())
    digests = {tensor.dtype: as_sent.hexdigest(), embedding.dtype: as_served.hexdigest()}
    return any(embedding.digests.get(dtype) == digest for dtype, digest in digests.items())


def _widened(chunk: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(chunk, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(chunk, "<f2" if dtype == "F16" else "<f4").astype("<f4")


def _narrowed(numbers: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """To the nearest, ties to even, as torch rounds."""
    if dtype == "F32":
        return numbers
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype("<f2")
    bits = numbers.view(np.uint32)
    rounded: NDArray[Any] = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return rounded.astype("<u2")
