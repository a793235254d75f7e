"""Paged attention in plain torch, registered as a transformers attention function.

The model's own code computes q, k and v and their positions; this function stores k and v in the
paged cache and attends over each request's own blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from router_engine.model.batch import DecodeRows, PrefillChunk, StepBatch

ATTENTION = "adaptermix_paged"


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: StepBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a flat batch over the paged cache.

    query [1, heads, tokens, head_dim]; key, value [1, kv_heads, tokens, head_dim], positions
    applied. Returns [1, tokens, heads, head_dim]. `attention_mask` is None: what a token sees
    follows from its request and its position.
    """
    layer = module.layer_idx
    assert isinstance(layer, int)
    cache = step.cache
    cache.write(layer, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    keys, values = cache.keys[layer], cache.values[layer]
    flat = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
    output = torch.empty_like(flat)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for chunk in step.prefills:
        tokens = slice(chunk.first, chunk.first + chunk.length)
        output[tokens] = _prefill(flat[tokens], keys, values, chunk, scale, sliding_window)
    if step.decodes is not None:
        rows = step.decodes
        output[rows.index] = _decode(flat[rows.index], keys, values, rows, scale, sliding_window)
    return output.unsqueeze(0), None


def _prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    chunk: PrefillChunk,
    scale: float,
    window: int | None,
) -> Tensor:
    """query [length, heads, head_dim] -> the same shape."""
    context = chunk.slots.shape[0]
    seen = torch.arange(context, device=query.device)
    own = seen[context - chunk.length :, None]
    mask = _mask(own, seen, window)
    return _attend(
        query.transpose(0, 1)[None],
        keys[chunk.slots].transpose(0, 1)[None],
        values[chunk.slots].transpose(0, 1)[None],
        mask,
        scale,
    )[0].transpose(0, 1)


def _decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: DecodeRows,
    scale: float,
    window: int | None,
) -> Tensor:
    """query [rows, heads, head_dim] -> the same shape."""
    seen = torch.arange(rows.slots.shape[1], device=query.device)
    mask = _mask(rows.positions[:, None], seen, window)[:, None, None, :]
    return _attend(
        query[:, :, None],
        keys[rows.slots].transpose(1, 2),
        values[rows.slots].transpose(1, 2),
        mask,
        scale,
    )[:, :, 0]


def _mask(own: Tensor, seen: Tensor, window: int | None) -> Tensor:
    """Whether a token at position `own` [n, 1] sees position `seen` [m]: [n, m] bool."""
    mask = seen <= own
    return mask if window is None else mask & (seen > own - window)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v; query heads share kv heads in groups, [batch, heads, n, head_dim]."""
    return functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def register() -> None:
    """Make the function known to transformers under `ATTENTION`."""
    AttentionInterface.register(ATTENTION, paged_attention)
