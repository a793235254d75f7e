"""Kernels whose sizes vary from step to step."""

from __future__ import annotations

from typing import Any

import triton


def sized(*names: str) -> Any:
    """`triton.jit`, but that no variant is compiled for what these arguments happen to be.

    Else a 1, a multiple of 16 and any other number are three kernels, compiled as they come, and so
    are addresses that are multiples of 16 and others.
    """
    return triton.jit(do_not_specialize=list(names))
