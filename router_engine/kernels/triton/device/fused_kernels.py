"""The operations between a decoder layer's matrix products, one launch each.

Sums and products of half precision go by fp32 and are rounded where transformers rounds them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from router_engine.kernels.triton.device.sized import sized


@sized("tokens")
def norm_kernel(
    x, residual, weight, out, tokens, x_stride, width, epsilon,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """residual += x if ADD, otherwise residual = x; out = rmsnorm(residual) weight.

    Grid: blocks of ROWS tokens. Rounds where transformers' RMSNorm does: after the sum, after the
    norm, after the product.
    """
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    place = token[:, None] * width + column[None, :]
    value = tl.load(x + token[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
    if ADD:
        stream = tl.load(residual + place, mask=inside, other=0.0)
        value = (value.to(tl.float32) + stream.to(tl.float32)).to(value.dtype)
    tl.store(residual + place, value, mask=inside)
    wide = value.to(tl.float32)
    variance = tl.sum(wide * wide, 1) / width
    normed = (wide * tl.rsqrt(variance + epsilon)[:, None]).to(out.dtype.element_ty)
    scale = tl.load(weight + column, mask=column < width, other=0.0)
    scaled = scale.to(tl.float32)[None, :] * normed.to(tl.float32)
    tl.store(out + place, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scale(q_norm, k_norm, is_query, column, inside):
    """The norm's weights of each row's head [rows, columns]."""
    of_queries = tl.load(q_norm + column, mask=inside, other=0.0)
    of_keys = tl.load(k_norm + column, mask=inside, other=0.0)
    return tl.where(is_query[:, None], of_queries[None, :], of_keys[None, :])


@triton.jit
def _scaled(normed, weight):
    """normed weight, both rounded as transformers does; sums and products of bf16 go by fp32."""
    rounded = normed.to(weight.dtype).to(tl.float32)
    return (rounded * weight.to(tl.float32)).to(weight.dtype)


@triton.jit
def _store_halves(target, low, high, mask, HALF_HEAD: tl.constexpr):
    tl.store(target, low, mask=mask)
    tl.store(target + HALF_HEAD, high, mask=mask)


# Positions and slots are rows of one array: where they begin depends on the tokens.
@sized("tokens", "positions", "slots")
def rope_kernel(
    qkv, positions, slots, cosines, sines, q_norm, k_norm, keys, values,
    tokens, qkv_stride, slot_stride, head_stride, heads, kv_heads, epsilon,
    NORM: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotates q in place; rotates k and stores it and v in the cache.

    Grid: blocks of ROWS heads of all tokens. qkv [tokens, (heads + 2 kv_heads) * HEAD]; cosines,
    sines [positions, HEAD / 2]. NORM: a norm a head before the rotation (Qwen3). A token whose slot
    is negative stores nothing.
    """
    HALF_HEAD: tl.constexpr = HEAD // 2
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    all_heads = heads + 2 * kv_heads
    token, head = row // all_heads, row % all_heads
    half = tl.arange(0, HALF)
    there, within = token < tokens, half < HALF_HEAD
    inside = there[:, None] & within[None, :]
    source = (token.to(tl.int64) * qkv_stride + head * HEAD)[:, None] + half[None, :]
    low = tl.load(qkv + source, mask=inside, other=0.0)
    high = tl.load(qkv + source + HALF_HEAD, mask=inside, other=0.0)
    slot = tl.load(slots + token, mask=there, other=-1).to(tl.int64)
    stored = inside & (slot >= 0)[:, None]
    is_query, is_value = head < heads, head >= heads + kv_heads
    kv_head = head - heads - tl.where(is_value, kv_heads, 0)
    target = (slot * slot_stride + kv_head * head_stride)[:, None] + half[None, :]
    _store_halves(values + target, low, high, stored & is_value[:, None], HALF_HEAD)
    if NORM:
        low_wide, high_wide = low.to(tl.float32), high.to(tl.float32)
        squares = tl.sum(low_wide * low_wide, 1) + tl.sum(high_wide * high_wide, 1)
        factor = tl.rsqrt(squares / HEAD + epsilon)[:, None]
        low = _scaled(low_wide * factor, _scale(q_norm, k_norm, is_query, half, within))
        high = _scaled(
            high_wide * factor, _scale(q_norm, k_norm, is_query, HALF_HEAD + half, within)
        )
    position = tl.load(positions + token, mask=there, other=0).to(tl.int64)
    angle = (position * HALF_HEAD)[:, None] + half[None, :]
    cosine = tl.load(cosines + angle, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=inside, other=0.0).to(tl.float32)
    low_wide, high_wide = low.to(tl.float32), high.to(tl.float32)
    new_low = (low_wide * cosine - high_wide * sine).to(low.dtype)
    new_high = (high_wide * cosine + low_wide * sine).to(low.dtype)
    _store_halves(qkv + source, new_low, new_high, inside & is_query[:, None], HALF_HEAD)
    is_key = (head >= heads) & (head < heads + kv_heads)
    _store_halves(keys + target, new_low, new_high, stored & is_key[:, None], HALF_HEAD)


@sized("tokens")
def silu_kernel(gate_up, out, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, i] = silu(gate_up[t, i]) gate_up[t, width + i].

    Grid: (blocks of ROWS tokens, blocks of width).
    """
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (token < tokens) & (column < width)
    gate = tl.load(gate_up + token * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(gate_up + token * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = gated.to(tl.float32) * up.to(tl.float32)
    tl.store(out + token * width + column, product.to(out.dtype.element_ty), mask=inside)
