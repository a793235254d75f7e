"""Paged attention, one kernel for decodes and prefill chunks.

A program holds some tokens of one request with all query heads that share a kv head, as the rows of
one tile: with grouped queries every key is read once for its whole group. It walks the request's
blocks with an online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao 2023). With SPLITS > 1
the context is divided among programs (flash-decoding) and `combine_kernel` joins their parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from router_engine.kernels.triton.device.product import product
from router_engine.kernels.triton.device.sized import sized


@triton.jit
def _context(
    context, length, tile, split, window,
    WINDOWED: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Positions [begin, end) that a tile's tokens see, or this split's share of them."""
    begin = 0
    end = tl.minimum(context, context - length + (tile + 1) * TOKENS)
    if WINDOWED:
        begin = tl.maximum(0, context - length + tile * TOKENS - window + 1)
        begin = begin // BLOCK_N * BLOCK_N
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(end - begin, SPLITS), BLOCK_N) * BLOCK_N
        begin += split * share
        end = tl.minimum(end, begin + share)
    return begin, end


@triton.jit
def _softmax(score, visible, best):
    """Weights of a block's scores, relative to the highest so far; that; what the old ones lost."""
    score = tl.where(visible, score, float("-inf"))
    higher = tl.maximum(best, tl.max(score, 1))
    # A row that has seen nothing yet keeps -inf: -inf - -inf would be NaN.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return tl.exp2(score - base[:, None]), higher, tl.exp2(best - base)


@triton.jit
def _place(tables, seen, in_context, slot_stride, PAGE: tl.constexpr):
    """Where the cache holds the positions `seen` of a request whose blocks start at `tables`."""
    page = tl.load(tables + seen // PAGE, mask=in_context, other=0).to(tl.int64)
    return (page * PAGE + seen % PAGE) * slot_stride


@triton.jit
def _store(
    out, parts, maxima, sums, total, best, norm, token, tokens, split, head, heads, dim, live, mask,
    out_stride, HEAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The outputs of a tile, or what its split knows of them."""
    if SPLITS > 1:
        row = (split * tokens + token).to(tl.int64) * heads + head
        tl.store(parts + row[:, None] * HEAD + dim[None, :], total, mask=mask)
        tl.store(maxima + row, best, mask=live)
        tl.store(sums + row, norm, mask=live)
    else:
        total = total / tl.where(norm == 0, 1.0, norm)[:, None]
        place = token.to(tl.int64) * out_stride + head * HEAD
        total = total.to(out.dtype.element_ty)
        tl.store(out + place[:, None] + dim[None, :], total, mask=mask)


@sized("tokens", "table_stride")
def attend_kernel(
    query, keys, values, out, parts, maxima, sums, tables, starts, contexts,
    tokens, heads, scale, window,
    query_stride, query_head_stride, slot_stride, head_stride, out_stride, table_stride,
    GROUP: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    WINDOWED: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: (requests, token tiles of the longest chunk, kv heads * SPLITS).

    scale holds log2(e). The tokens of a request without a context come out as zeros.
    """
    request = tl.program_id(0)
    tile = tl.program_id(1)
    kv_head, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    first = tl.load(starts + request)
    length = tl.load(starts + request + 1) - first
    if tile * TOKENS >= length:
        return
    context = tl.load(contexts + request)
    member = tl.arange(0, BLOCK_M)
    local = tile * TOKENS + member // GROUP
    live = (member < TOKENS * GROUP) & (local < length)
    token = first + local
    head = kv_head * GROUP + member % GROUP
    position = context - length + local
    dim = tl.arange(0, BLOCK_D)
    row_mask = live[:, None] & (dim < HEAD)[None, :]
    row = token.to(tl.int64) * query_stride + head * query_head_stride
    q = tl.load(query + row[:, None] + dim[None, :], mask=row_mask, other=0.0)
    table = tables + request * table_stride
    begin, end = _context(
        context, length, tile, split, window, WINDOWED, SPLITS, TOKENS, BLOCK_N
    )  # fmt: skip
    best = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    norm = tl.zeros((BLOCK_M,), dtype=tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for at in range(begin, end, BLOCK_N):
        seen = at + tl.arange(0, BLOCK_N)
        in_context = seen < end
        place = _place(table, seen, in_context, slot_stride, PAGE) + kv_head * head_stride
        mask = in_context[:, None] & (dim < HEAD)[None, :]
        key = tl.load(keys + place[:, None] + dim[None, :], mask=mask, other=0.0)
        value = tl.load(values + place[:, None] + dim[None, :], mask=mask, other=0.0)
        visible = in_context[None, :] & (seen[None, :] <= position[:, None])
        if WINDOWED:
            visible = visible & (seen[None, :] > position[:, None] - window)
        score = product(q, tl.trans(key), None, WIDEN) * scale
        weight, best, decay = _softmax(score, visible, best)
        norm = norm * decay + tl.sum(weight, 1)
        total = product(weight.to(value.dtype), value, total * decay[:, None], WIDEN)
    _store(
        out, parts, maxima, sums, total, best, norm, token, tokens, split, head, heads, dim, live,
        row_mask, out_stride, HEAD, SPLITS,
    )  # fmt: skip


@sized("tokens")
def combine_kernel(
    parts, maxima, sums, out, tokens, heads, out_stride,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Joins the splits of one token and head. Grid: (tokens, heads)."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    dim = tl.arange(0, BLOCK_D)
    split = tl.arange(0, SPLITS)
    row = (split * tokens + token).to(tl.int64) * heads + head
    maximum = tl.load(maxima + row)
    best = tl.max(maximum, 0)
    decay = tl.exp2(maximum - tl.where(best == float("-inf"), 0.0, best))
    norm = tl.sum(decay * tl.load(sums + row), 0)
    mask = (dim < HEAD)[None, :]
    part = tl.load(parts + row[:, None] * HEAD + dim[None, :], mask=mask, other=0.0)
    total = tl.sum(part * decay[:, None], 0) / tl.where(norm == 0, 1.0, norm)
    place = out + token.to(tl.int64) * out_stride + head * HEAD + dim
    tl.store(place, total.to(out.dtype.element_ty), mask=dim < HEAD)
