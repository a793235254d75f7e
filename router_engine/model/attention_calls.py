"""The calls of attention that transformers' own code makes, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

_RECORDER = "adaptermix_recorder"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's call of attention. window: positions that a token sees, None for all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None


@torch.inference_mode()
def attention_calls(model: PreTrainedModel) -> tuple[AttentionCall, ...]:
    """Each layer's own call of attention, found by running its code on one token.

    A config may hold keys that an architecture's code never reads.
    """
    AttentionInterface.register(_RECORDER, _record)
    before = model.config._attn_implementation
    calls: list[AttentionCall] = []
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.set_attn_implementation(_RECORDER)
    layers: Any = model.base_model
    try:
        layers(input_ids=token, position_ids=token, use_cache=False, calls=calls)
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
    """An attention function that computes nothing: it notes what is asked for."""
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else float(scaling)
    window = None if sliding_window is None else int(sliding_window)
    calls.append(AttentionCall(query.shape[1], key.shape[1], dim, scale, window))
    return torch.zeros_like(query.transpose(1, 2)), None
