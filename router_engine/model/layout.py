"""The layout that transformers built of a config, read from the modules and what they call.

The decoders of our own lay a model out by this, never by keys of its config: an architecture's code
ignores some of them, and reads others in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from adapters_store.types import LinearShape
from router_engine.errors import UnsupportedModelError
from router_engine.model.attention_calls import AttentionCall
from router_engine.model.checkpoint import SUPPORTED
from router_engine.model.quantized import Int8Linear

# What the decoders of our own, in C++ and CUDA, lay out.
DECODER_FAMILIES = tuple(name for name in SUPPORTED if name != "GPT2LMHeadModel")


@dataclass(frozen=True, slots=True)
class Layout:
    """The widths and constants of a model of the Llama family, the same in all layers."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float  # of every norm
    scale: float  # of attention


def layout_of(model: PreTrainedModel, calls: tuple[AttentionCall, ...]) -> Layout:
    """The layout of a model whose layers call attention so.

    Raises UnsupportedModelError, with the reason, for one that is no Llama with equal layers.
    """
    name = type(model).__name__
    if name not in DECODER_FAMILIES:
        raise UnsupportedModelError(
            f"architecture {name} is not one of {', '.join(DECODER_FAMILIES)}"
        )
    built: Any = model.base_model
    for layer in built.layers:
        if not isinstance(layer.mlp.act_fn, (nn.SiLU, type(ACT2FN["silu"]))):
            raise UnsupportedModelError(f"activation {layer.mlp.act_fn} is not silu")
    heads, kv_heads, head_dim, scale = _only(
        "heads and scales of attention",
        {(call.heads, call.kv_heads, call.head_dim, call.scale) for call in calls},
    )
    if 2 * len(built.rotary_emb.inv_freq) != head_dim:
        raise UnsupportedModelError("rotary embeddings cover a part of a head only")
    widths = {shape_of(layer.mlp.gate_proj).out_features for layer in built.layers}
    norms = [built.norm, *(norm for layer in built.layers for norm in _norms(layer))]
    return Layout(
        hidden=int(built.embed_tokens.weight.shape[1]),
        intermediate=_only("widths of the feed-forward", widths),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=_only("epsilons of the norms", {float(norm.variance_epsilon) for norm in norms}),
        scale=scale,
    )


def layout_refusal(model: PreTrainedModel, calls: tuple[AttentionCall, ...]) -> str | None:
    """Why no decoder of ours lays this model out, or None where `layout_of` does."""
    try:
        layout_of(model, calls)
    except UnsupportedModelError as error:
        return str(error)
    return None


def shape_of(layer: nn.Module) -> LinearShape:
    """The widths of a linear layer, or of a layer around one that says its own `shape`."""
    shape: Any = getattr(layer, "shape", None)
    if isinstance(shape, LinearShape):
        return shape
    weight: Any = layer.values if isinstance(layer, Int8Linear) else layer.weight
    rows, columns = weight.shape
    return LinearShape(rows, columns) if isinstance(layer, Conv1D) else LinearShape(columns, rows)


def _norms(layer: Any) -> list[Any]:
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    for name in ("q_norm", "k_norm"):
        norm = getattr(layer.self_attn, name, None)
        if norm is not None:
            norms.append(norm)
    return norms


def _only(what: str, values: set[Any]) -> Any:
    """The one value that all layers have."""
    if len(values) != 1:
        raise UnsupportedModelError(f"the {what} differ: {sorted(values)}")
    return values.pop()
