"""The number format of a model that was asked for in none: what the checkpoint says, unless slow.

A processor has no arithmetic in fp16, and most have none in bf16. The C++ decoder reads bf16 and
computes in whatever the processor has; transformers' own code computes in the weights' format.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import torch
from torch.nn import functional

_ROWS = (1, 8, 64)
_RUNS = 3
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
    if has_decoder or _behind(torch.bfloat16, int(config.hidden_size)) <= 1.0:
        return "auto"
    return torch.float32


def _behind(dtype: torch.dtype, hidden: int) -> float:
    """How many times as long as in fp32 products take in a format, over some numbers of rows."""
    width = min(hidden, _WIDEST)
    ratios = [_seconds(dtype, rows, width) / _seconds(torch.float32, rows, width) for rows in _ROWS]
    return math.prod(ratios) ** (1 / len(ratios))


@torch.inference_mode()
def _seconds(dtype: torch.dtype, rows: int, width: int) -> float:
    """The least that a product takes: what else runs only ever adds."""
    weight, x = torch.ones(4 * width, width, dtype=dtype), torch.ones(rows, width, dtype=dtype)
    functional.linear(x, weight)
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        functional.linear(x, weight)
        times.append(time.perf_counter() - started)
    return min(times)
