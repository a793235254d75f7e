"""Bytes that LoRA adapters take on a device in float32, told by their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

_LINE = 64  # what a part of a slab is padded to


def slab_bytes(folders: Iterable[Path]) -> int:
    """Of all of them together: A and B, and a number for each row that layer routers read."""
    total = 0
    for folder in folders:
        with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                rows, width = file.get_slice(key).get_shape()
                total += _padded(4 * rows * width)
                if ".lora_A." in key:
                    total += _padded(4 * rows)
    return total


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _LINE) * _LINE
