"""Paged attention, registered as a transformers attention function.

The model's own code computes q, k and v and their positions; this function stores k and v in the
paged cache and attends over each request's own blocks, with the kernels that the step was laid out
for; the prompts of the step's experts come on top.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from router_engine.backends.torch.step_batch import StepBatch

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
    flat = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = step.attention.attend(
        flat, cache.keys[layer], cache.values[layer], scale, sliding_window
    )
    return step.experts.prompt(layer, flat, output).unsqueeze(0), None


def install_attention(model: PreTrainedModel) -> None:
    """Let a model's layers attend by `paged_attention`."""
    AttentionInterface.register(ATTENTION, paged_attention)
    model.set_attn_implementation(ATTENTION)
