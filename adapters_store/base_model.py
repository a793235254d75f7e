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
    """An embedding of the base, input or output: what a copy of it is known by.

    `digests` holds the sha256 (hex) of its numbers, row major, little endian, by their format in
    safetensors' words: in `dtype`, that in which they are served, and in formats that hold less.
    """

    shape: tuple[int, ...]
    dtype: str
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """What a store must know of the base model to validate an adapter, without torch.

    `linears` maps each linear layer's path in the model ("model.layers.0.self_attn.q_proj",
    "lm_head") to its shape. `other_modules` holds the other parametrised modules (embeddings,
    norms): an adapter that targets one of those is refused with a better reason than "unknown".
    `blocks`: the decoder's layers; hidden_size, num_heads: what experts beside LoRA are checked by.
    `embeddings`: those whose copies can be told from changed ones, by their modules' paths.
    """

    name: str
    architecture: str
    linears: Mapping[str, LinearShape]
    other_modules: tuple[str, ...] = ()
    blocks: tuple[BlockSpec, ...] = ()
    hidden_size: int = 0
    num_heads: int = 0
    embeddings: Mapping[str, EmbeddingSpec] = field(default_factory=dict)
