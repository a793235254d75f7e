"""The matrix product that every kernel uses."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, total, WIDEN: tl.constexpr):
    """total + a b, summed in fp32; fp32 inputs are not cut to tf32.

    WIDEN: by way of fp32, for the interpreter, which has no products of bf16.
    """
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
