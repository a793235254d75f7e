"""The matrix products that kernels share."""

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


@triton.jit
def shrunk(
    x_rows, a_rows, there, live, start, stop,
    WIDEN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_T, BLOCK_R] fp32: sum of x[t, k] a[r, k] over start <= k < stop.

    x_rows [BLOCK_T], a_rows [BLOCK_R]: pointers to the rows; those not `there` or `live` are 0.
    """
    total = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for k in range(start, stop, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        inside = inner < stop
        x_mask = there[:, None] & inside[None, :]
        x_tile = tl.load(x_rows[:, None] + inner[None, :], mask=x_mask, other=0.0)
        a_mask = live[None, :] & inside[:, None]
        a_tile = tl.load(a_rows[None, :] + inner[:, None], mask=a_mask, other=0.0)
        total = product(x_tile, a_tile, total, WIDEN)
    return total
