"""Bytes that LoRA adapters take on a device in float32, told by their files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from adapters_store.device_size import padded
from adapters_store.tensor_header import read_header


def slab_bytes(folders: Iterable[Path]) -> int:
    """Of all of them together: A and B, and a number for each row that layer routers read."""
    total = 0
    for folder in folders:
        for key, tensor in read_header(folder / "adapter_model.safetensors").tensors.items():
            total += padded(4 * math.prod(tensor.shape))
            if ".lora_A." in key:
                total += padded(4 * tensor.shape[0])
    return total
