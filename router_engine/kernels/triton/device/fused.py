"""What lies between a decoder layer's matrix products, one launch each.

Sums and products of half precision go by fp32 and are rounded where transformers rounds them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    x, residual, weight, out, x_stride, width, epsilon,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """residual += x if ADD, otherwise residual = x; out = rmsnorm(residual) weight. Grid: tokens.

    Rounds where transformers' RMSNorm does: after the sum, after the norm, after the product.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + token * x_stride + column, mask=inside, other=0.0)
    if ADD:
        kept = tl.load(residual + token * width + column, mask=inside, other=0.0)
        value = (value.to(tl.float32) + kept.to(tl.float32)).to(value.dtype)
    tl.store(residual + token * width + column, value, mask=inside)
    wide = value.to(tl.float32)
    variance = tl.sum(wide * wide, 0) / width
    normed = (wide * tl.rsqrt(variance + epsilon)).to(out.dtype.element_ty)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    scaled = scale.to(tl.float32) * normed.to(tl.float32)
    tl.store(out + token * width + column, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(normed, scale, inside):
    """normed scale, both rounded as transformers does; sums and products of bf16 go by fp32."""
    weight = tl.load(scale, mask=inside, other=0.0)
    rounded = normed.to(weight.dtype).to(tl.float32)
    return (rounded * weight.to(tl.float32)).to(weight.dtype)


@triton.jit
def rope_kernel(
    qkv, positions, slots, cosines, sines, q_norm, k_norm, keys, values,
    qkv_stride, slot_stride, head_stride, heads, kv_heads, epsilon,
    NORM: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotates q in place; rotates k and stores it and v in the cache. Grid: (tokens, all heads).

    qkv [tokens, (heads + 2 kv_heads) * HEAD]; cosines, sines [positions, HEAD / 2]. NORM: a norm a
    head before the rotation (Qwen3). A token whose slot is negative stores nothing.
    """
    token = tl.program_id(0)
    head = tl.program_id(1)
    half = tl.arange(0, HALF)
    inside = half < HEAD // 2
    source = qkv + token.to(tl.int64) * qkv_stride + head * HEAD + half
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + HEAD // 2, mask=inside, other=0.0)
    slot = tl.load(slots + token).to(tl.int64)
    if head >= heads + kv_heads:
        if slot >= 0:
            target = values + slot * slot_stride + (head - heads - kv_heads) * head_stride + half
            tl.store(target, low, mask=inside)
            tl.store(target + HEAD // 2, high, mask=inside)
        return
    if NORM:
        scale = q_norm if head < heads else k_norm
        low_wide, high_wide = low.to(tl.float32), high.to(tl.float32)
        squares = tl.sum(low_wide * low_wide, 0) + tl.sum(high_wide * high_wide, 0)
        factor = tl.rsqrt(squares / HEAD + epsilon)
        low = _scaled(low_wide * factor, scale + half, inside)
        high = _scaled(high_wide * factor, scale + HEAD // 2 + half, inside)
    angle = tl.load(positions + token).to(tl.int64) * (HEAD // 2) + half
    cosine = tl.load(cosines + angle, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=inside, other=0.0).to(tl.float32)
    low_wide, high_wide = low.to(tl.float32), high.to(tl.float32)
    new_low = (low_wide * cosine - high_wide * sine).to(low.dtype)
    new_high = (high_wide * cosine + low_wide * sine).to(low.dtype)
    if head < heads:
        tl.store(source, new_low, mask=inside)
        tl.store(source + HEAD // 2, new_high, mask=inside)
    elif slot >= 0:
        target = keys + slot * slot_stride + (head - heads) * head_stride + half
        tl.store(target, new_low, mask=inside)
        tl.store(target + HEAD // 2, new_high, mask=inside)


@triton.jit
def silu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """out[t, i] = silu(gate_up[t, i]) gate_up[t, width + i]. Grid: (tokens, blocks of width)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + token * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(gate_up + token * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = gated.to(tl.float32) * up.to(tl.float32)
    tl.store(out + token * width + column, product.to(out.dtype.element_ty), mask=inside)
