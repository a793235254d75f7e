"""The speed of the device's memory, which a step's floor is made of."""

from __future__ import annotations

import time

import torch

_BYTES = {"cuda": 1 << 32, "cpu": 1 << 26}
_COPIES = 6


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second, reading and writing counted, of a copy far larger than any cache.

    What it takes goes back to the device.
    """
    best = _best_copy(device, _BYTES[device.type])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return 2 * _BYTES[device.type] / best


def _best_copy(device: torch.device, size: int) -> float:
    """Seconds of the fastest of some copies of so many bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
