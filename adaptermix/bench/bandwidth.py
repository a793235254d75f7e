"""How fast this machine reads memory: what every floor is made of."""

from __future__ import annotations

import time

import torch

_BYTES = 1 << 28  # far more than any cache


def read_bandwidth(rounds: int) -> float:
    """Bytes a second, the best of the rounds, with all of torch's threads or on the GPU.

    A sum reads every byte once and does next to nothing with it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = torch.ones(_BYTES // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(rounds + 1):
        started = time.perf_counter()
        memory.sum().item()
        best = min(best, time.perf_counter() - started)
    return _BYTES / best
