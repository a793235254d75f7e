"""The content address of an adapter: sha256 over its manifest, its tensors and its texts."""

from __future__ import annotations

import hashlib
from pathlib import Path

_DOMAIN = b"adaptermix-adapter-1\n"
_CHUNK = 1 << 20


def adapter_digest(manifest: bytes, tensors: Path, texts: bytes = b"") -> str:
    """ "sha256:..." of an adapter.

    `manifest` is canonical JSON (`manifest_to_json`), `tensors` the safetensors file, `texts` the
    canonical JSONL of the sample texts that it is published with (b"" for none; texts that are set
    later are not covered). Each part is preceded by its length in bytes (8 bytes, little endian),
    so no two splits of the same bytes agree. File names and PEFT's own config text do not count.
    Raises OSError when `tensors` cannot be read.
    """
    state = hashlib.sha256(_DOMAIN)
    state.update(_length(len(manifest)) + manifest)
    state.update(_length(tensors.stat().st_size))
    with tensors.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    state.update(_length(len(texts)) + texts)
    return "sha256:" + state.hexdigest()


def _length(size: int) -> bytes:
    return size.to_bytes(8, "little")
