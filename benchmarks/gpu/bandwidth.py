"""The speed of the device's memory, which a step's floor is made of."""

from __future__ import annotations

import time

import torch


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second, reading and writing counted, of a copy far larger than any cache."""
    size = 1 << 32 if device.type == "cuda" else 1 << 26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
