"""The number format of a model that was asked for in none: what the checkpoint says, unless slow.

A processor has no arithmetic in fp16, and most have none in bf16. The C++ decoder reads bf16 and
computes in whatever the processor has; transformers' own code computes in the weights' format.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

_ROWS = (1, 8, 64)
_FEWEST = 3  # runs
_SECONDS = 0.1  # of runs, more than a time slice of another process
_WIDEST = 2048  # of a product that is timed


def auto_dtype(
    config: Any, device: torch.device, *, has_decoder: bool
) -> torch.dtype | Literal["auto"]:
    """The format for a model of transformers' `config` on a device; "auto": the checkpoint's.

    On a CPU fp16 widens to fp32, which holds it exactly. bf16 does too where transformers' code
    runs it and fp32 is measured to be faster.
    """
    stored = getattr(config, "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    if device.type != "cpu" or stored not in (torch.float16, torch.bfloat16):
        return "auto"
    if stored == torch.float16:
        return torch.float32
    if has_decoder or behind(torch.bfloat16, int(config.hidden_size)) <= 1.0:
        return "auto"
    return torch.float32


def behind(dtype: torch.dtype, hidden: int, rows: Sequence[int] = _ROWS) -> float:
    """How many times as long as in fp32 products take in a format, over some numbers of rows."""
    width = min(hidden, _WIDEST)
    return math.prod(_ratio(dtype, count, width) for count in rows) ** (1 / len(rows))


@torch.inference_mode()
def _ratio(dtype: torch.dtype, rows: int, width: int) -> float:
    """Of the least times, since what else runs only ever adds; in turn, as it may come and go."""
    formats = (dtype, torch.float32)
    pairs = [
        (torch.ones(rows, width, dtype=one), torch.ones(4 * width, width, dtype=one))
        for one in formats
    ]
    for x, weight in pairs:
        functional.linear(x, weight)
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < _FEWEST or time.perf_counter() - begin < _SECONDS:
        for (x, weight), taken in zip(pairs, times, strict=True):
            started = time.perf_counter()
            functional.linear(x, weight)
            taken.append(time.perf_counter() - started)
    return min(times[0]) / min(times[1])
