"""What transformers built of a config, read from the modules and from what they call.

The decoders of our own lay a model out by this, never by keys of its config: an architecture's code
ignores some of them, and reads others in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from router_engine.errors import UnsupportedModelError
from router_engine.backends.torch.attention_function import AttentionCall
from router_engine.model.checkpoint import SUPPORTED
from router_engine.backends.torch.wrapped_layers import shape_of

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
    body: Any = model.base_model
    for layer in body.layers:
        if not isinstance(layer.mlp.act_fn, (nn.SiLU, type(ACT2FN["silu"]))):
            raise UnsupportedModelError(f"activation {layer.mlp.act_fn} is not silu")
    heads, kv_heads, head_dim, scale = _only(
        "heads and scales of attention",
        {(call.heads, call.kv_heads, call.head_dim, call.scale) for call in calls},
    )
    if 2 * len(body.rotary_emb.inv_freq) != head_dim:
        raise UnsupportedModelError("rotary embeddings cover a part of a head only")
    widths = {shape_of(layer.mlp.gate_proj).out_features for layer in body.layers}
    norms = [body.norm, *(norm for layer in body.layers for norm in _norms(layer))]
    return Layout(
        hidden=int(body.embed_tokens.weight.shape[1]),
        intermediate=_only("widths of the feed-forward", widths),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=_only("epsilons of the norms", {float(norm.variance_epsilon) for norm in norms}),
        scale=scale,
    )


def _norms(layer: Any) -> list[Any]:
    found = [layer.input_layernorm, layer.post_attention_layernorm]
    for name in ("q_norm", "k_norm"):
        norm = getattr(layer.self_attn, name, None)
        if norm is not None:
            found.append(norm)
    return found


def _only(what: str, values: set[Any]) -> Any:
    """The one value that all layers have."""
    if len(values) != 1:
        raise UnsupportedModelError(f"the {what} differ: {sorted(values)}")
    return values.pop()
