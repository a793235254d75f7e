"""Bounds on uploads. What is past one is refused with the limit's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds on what is published. Sizes in bytes."""

    max_upload_bytes: int = 2 << 30  # what is sent: an archive, or all files together
    max_unpacked_bytes: int = 2 << 30  # what an archive unpacks to
    max_unpack_ratio: int = 200  # unpacked to packed, past the first 16 MiB
    max_files: int = 256
    max_config_bytes: int = 1 << 20
    max_header_bytes: int = 4 << 20  # the JSON header of a safetensors file
    max_tensors: int = 16_384
    max_rank: int = 512
    max_texts: int = 4096
    max_text_bytes: int = 32 << 10  # one sample text, as UTF-8
    max_tags: int = 32


DEFAULT_LIMITS = StoreLimits()
