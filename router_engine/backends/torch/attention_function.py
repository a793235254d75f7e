"""Paged attention, registered as a transformers attention function.

The model's own code computes q, k and v and their positions; this function stores k and v in the
paged cache and attends over each request's own blocks, with the kernels that the step was laid out
for; the prompts of the step's experts come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from router_engine.backends.torch.step_batch import StepBatch

ATTENTION = "adaptermix_paged"
_RECORDER = "adaptermix_recorder"


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
    flat = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = step.attention.attend(
        flat, cache.keys[layer], cache.values[layer], scale, sliding_window
    )
    return step.experts.prompt(layer, flat, output).unsqueeze(0), None


def register() -> None:
    """Make the functions known to transformers."""
    AttentionInterface.register(ATTENTION, paged_attention)
    AttentionInterface.register(_RECORDER, _record)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer asks of attention. window: positions that a token sees, None for all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None


@torch.inference_mode()
def attention_calls(model: PreTrainedModel) -> tuple[AttentionCall, ...]:
    """What each layer's own code asks of attention, found by running it on one token.

    A config may hold keys that an architecture's code never reads.
    """
    register()
    before = model.config._attn_implementation
    calls: list[AttentionCall] = []
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.set_attn_implementation(_RECORDER)
    body: Any = model.base_model
    try:
        body(input_ids=token, position_ids=token, use_cache=False, calls=calls)
    finally:
        model.set_attn_implementation(before)
    return tuple(calls)


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    calls: list[AttentionCall],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As `paged_attention`, on nothing: notes what is asked for."""
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else float(scaling)
    window = None if sliding_window is None else int(sliding_window)
    calls.append(AttentionCall(query.shape[1], key.shape[1], dim, scale, window))
    return torch.zeros_like(query.transpose(1, 2)), None
