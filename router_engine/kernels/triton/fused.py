"""Norms, rotations and activations of a decoder layer, one launch each.

On a GPU a decode step is bound by the weights' bytes: a launch for every elementwise operation of
transformers' code would take as long again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.kernels.triton.device.fused_kernels import norm_kernel, rope_kernel, silu_kernel
from router_engine.kernels.triton.launch import launch, power_of_two, rows_a_program

_BLOCK = 1024


def norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    epsilon: float,
    *,
    add: bool,
    rows: int | None = None,
) -> Tensor:
    """rmsnorm(residual) * weight after residual += x, or residual = x; [tokens, width] each.

    Changes `residual`, which is contiguous. rows: tokens of a program, a power of two; here and
    below None is as many as are fastest.
    """
    tokens, width = x.shape
    rows = rows or rows_a_program(tokens)
    out = torch.empty_like(residual)
    launch(
        norm_kernel,
        (-(-tokens // rows),),
        x,
        residual,
        weight,
        out,
        tokens,
        x.stride(0),
        width,
        epsilon,
        ADD=add,
        ROWS=rows,
        BLOCK=power_of_two(width),
    )
    return out


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of the heads of one layer.

    cosines, sines [positions, head_dim / 2]. q_norm, k_norm [head_dim]: weights of a norm a head
    before the rotation, or None.
    """

    cosines: Tensor
    sines: Tensor
    heads: int
    kv_heads: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    epsilon: float = 0.0


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    rotation: Rotation,
    keys: Tensor,
    values: Tensor,
    *,
    rows: int | None = None,
) -> None:
    """Rotate q in place; rotate k and store it and v. qkv [tokens, (heads + 2 kv_heads) * dim].

    keys, values [slots, kv_heads, dim]; a token with a negative slot stores nothing. rows: heads of
    a program, as of `norm`.
    """
    dim = keys.shape[2]
    heads = len(qkv) * (rotation.heads + 2 * rotation.kv_heads)
    rows = rows or rows_a_program(heads)
    unused = rotation.cosines
    launch(
        rope_kernel,
        (-(-heads // rows),),
        qkv,
        positions,
        slots,
        rotation.cosines,
        rotation.sines,
        unused if rotation.q_norm is None else rotation.q_norm,
        unused if rotation.k_norm is None else rotation.k_norm,
        keys,
        values,
        len(qkv),
        qkv.stride(0),
        keys.stride(0),
        keys.stride(1),
        rotation.heads,
        rotation.kv_heads,
        rotation.epsilon,
        NORM=rotation.q_norm is not None,
        HEAD=dim,
        ROWS=rows,
        HALF=power_of_two(dim // 2),
    )


def silu_mul(gate_up: Tensor, *, rows: int | None = None) -> Tensor:
    """[tokens, 2 * width], gates first, contiguous -> silu(gate) * up [tokens, width].

    rows: as of `norm`.
    """
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    rows, block = rows or rows_a_program(tokens), min(_BLOCK, power_of_two(width))
    out = gate_up.new_empty(tokens, width)
    launch(
        silu_kernel,
        (-(-tokens // rows), -(-width // block)),
        gate_up,
        out,
        tokens,
        width,
        ROWS=rows,
        BLOCK=block,
    )
    return out
