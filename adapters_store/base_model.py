"""The base model's shape: what a store must know of it to validate an adapter, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer of the base model: y [.., out_features] = W x [.., in_features]."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One layer of the decoder, by the paths of its modules."""

    path: str  # "model.layers.0"
    attention: str  # "model.layers.0.self_attn"
    feed_forward: str  # "model.layers.0.mlp"


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """An embedding of the base, input or output, by which copies of it are recognised."""

    shape: tuple[int, ...]
    dtype: str  # in which it is served, in safetensors' words: "F32"
    # sha256 (hex) of its numbers, row major, little endian, by their format: in `dtype`, and in
    # formats that hold less.
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """The base model as a store must know it to validate an adapter, without torch."""

    name: str
    architecture: str  # transformers' class: "LlamaForCausalLM"
    # By path in the model: "model.layers.0.self_attn.q_proj", "lm_head".
    linears: Mapping[str, LinearShape]
    # Paths of other modules with parameters (embeddings, norms): an adapter that targets one is
    # refused with a better reason than "unknown".
    other_modules: tuple[str, ...] = ()
    blocks: tuple[BlockSpec, ...] = ()  # the decoder's layers, first to last
    hidden_size: int = 0
    num_heads: int = 0  # of queries
    element_bytes: int = 4  # of a number of an adapter on the device
    # Of the device's memory for adapters: one that needs more could never be loaded. None: any.
    adapter_bytes: int | None = None
    # By path: those whose copies in an upload can be told from changed ones.
    embeddings: Mapping[str, EmbeddingSpec] = field(default_factory=dict)
