"""Paged attention over a list of work, one kernel for decodes and prefill chunks.

A program holds some tokens of one request with all query heads that share a kv head, as the rows of
one tile: with grouped queries every key is read once for its whole group. It walks a part of the
request's context, or all of it, with an online softmax (Milakov & Gimelshein 2018; FlashAttention,
Dao 2023). Parts of one context are joined by `combine_kernel` (flash-decoding).
"""

from __future__ import annotations

import triton
import triton.language as tl

from router_engine.kernels.triton.device.product import product
from router_engine.kernels.triton.device.sized import sized


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
    out, places, rows, parts, maxima, sums, total, best, norm, dim, live, mask, is_part,
    HEAD: tl.constexpr,
):  # fmt: skip
    """The outputs of a tile at `places`, or what one of its items knows of them, in `rows`."""
    if is_part:
        tl.store(parts + rows[:, None] * HEAD + dim[None, :], total, mask=mask)
        tl.store(maxima + rows, best, mask=live)
        tl.store(sums + rows, norm, mask=live)
    else:
        values = (total / tl.where(norm == 0, 1.0, norm)[:, None]).to(out.dtype.element_ty)
        tl.store(out + places[:, None] + dim[None, :], values, mask=mask)


@sized("items", "count", "table_stride")
def attend_kernel(
    query, keys, values, out, parts, maxima, sums, tables, items, count,
    heads, scale, window,
    query_stride, query_head_stride, slot_stride, head_stride, out_stride, table_stride,
    GROUP: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: (items or more, kv heads). items [count, 7]: as `attention_work.HostWork`.

    scale holds log2(e). parts, maxima, sums: what items with a row of the parts have found: sums of
    weighted values [rows, HEAD], relative to the highest score, that, and the sum of weights.
    """
    if tl.program_id(0) >= tl.load(count):
        return
    item = items + 7 * tl.program_id(0)
    request, first, length = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    begin, end, part = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    kv_head = tl.program_id(1)
    member = tl.arange(0, BLOCK_M)
    local = member // GROUP
    live = local < length
    token = (first + local).to(tl.int64)
    head = kv_head * GROUP + member % GROUP
    position = tl.load(item + 3) + local
    dim = tl.arange(0, BLOCK_D)
    row_mask = live[:, None] & (dim < HEAD)[None, :]
    row = token * query_stride + head * query_head_stride
    q = tl.load(query + row[:, None] + dim[None, :], mask=row_mask, other=0.0)
    table = tables + request.to(tl.int64) * table_stride
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
        out, token * out_stride + head * HEAD, (part + local * heads + head).to(tl.int64), parts,
        maxima, sums, total, best, norm, dim, live, row_mask, part >= 0, HEAD,
    )  # fmt: skip


@sized("joins", "count")
def combine_kernel(
    parts, maxima, sums, out, joins, count, out_stride,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Joins the parts of one token and head. Grid: (joins or more, heads).

    joins [count, 4]: as `attention_work.HostWork`.
    """
    if tl.program_id(0) >= tl.load(count):
        return
    join = joins + 4 * tl.program_id(0)
    head = tl.program_id(1)
    token, first = tl.load(join), tl.load(join + 1) + head
    step, number = tl.load(join + 2), tl.load(join + 3)
    dim = tl.arange(0, BLOCK_D)
    best = tl.full((1,), float("-inf"), dtype=tl.float32)
    norm = tl.zeros((1,), dtype=tl.float32)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for index in range(0, number):
        row = (first + index * step).to(tl.int64)
        maximum = tl.load(maxima + row)
        higher = tl.maximum(best, maximum)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        decay, weight = tl.exp2(best - base), tl.exp2(maximum - base)
        part = tl.load(parts + row * HEAD + dim, mask=dim < HEAD, other=0.0)
        total = total * decay + part * weight
        norm = norm * decay + tl.load(sums + row) * weight
        best = higher
    total = total / tl.where(norm == 0, 1.0, norm)
    place = out + token.to(tl.int64) * out_stride + head * HEAD + dim
    tl.store(place, total.to(out.dtype.element_ty), mask=dim < HEAD)
