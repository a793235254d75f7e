"""Loads a base model: a checkpoint directory, a hub id, a GGUF file, or the tiny random one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adapters_store.types import BaseModelSpec, BlockSpec, EmbeddingSpec, LinearShape
from router_engine.config import ModelConfig, Quantization
from router_engine.errors import UnsupportedModelError
from router_engine.kv.paged_cache import KVShape
from router_engine.model.attention import ATTENTION, register
from router_engine.model.dtypes import auto_dtype
from router_engine.model.embeddings import embedding_specs
from router_engine.model.quantized import quantize_linears
from router_engine.model.tap import layers_of, tap_layer_of
from router_engine.model.tiny import TINY_RANDOM, tiny_model

# Each proven token by token against `generate()`.
SUPPORTED = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

# Of these the ones that the decoders of our own, in C++ and CUDA, lay out.
DECODER_FAMILIES = tuple(name for name in SUPPORTED if name != "GPT2LMHeadModel")

_NAMED = 8  # tensors, where many are wrong

# Rotary embeddings that depend on a token's own position alone. `dynamic` and `longrope` change
# with the longest sequence of the batch: a request's text would depend on its neighbours.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model ready to be wrapped."""

    model: PreTrainedModel
    kv_shape: KVShape
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    quantization: Quantization = "none"
    tap_layer: int = 0  # see model.tap
    embeddings: Mapping[str, EmbeddingSpec] = field(default_factory=dict)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load weights and put our attention function in.

    Raises UnsupportedModelError for an architecture or option that is not served exactly, or where
    the quantization that is asked for cannot be done.
    """
    register()
    device = _device(config)
    if config.model == TINY_RANDOM:
        model: PreTrainedModel = tiny_model()
        if config.dtype != "auto":
            model = model.to(dtype=getattr(torch, config.dtype))
    else:
        location = _Location.of(config.model)
        described = AutoConfig.from_pretrained(location.name, **location.options)
        check_supported(described)
        model = _read(location, dtype_of(config, described, device))
    model.set_attn_implementation(ATTENTION)
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    embeddings = embedding_specs(model)
    if config.quantization == "int8":
        quantize_linears(model)
        leave_checkpoint(model)
    return LoadedModel(
        model=model,
        kv_shape=kv_shape(model.config),
        max_model_len=int(model.config.max_position_embeddings),
        eos_token_ids=_eos_ids(model),
        dtype=model.dtype,
        device=device,
        quantization=config.quantization,
        tap_layer=tap_layer_of(model, config.tap_layer),
        embeddings=embeddings,
    )


def _read(location: _Location, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """The checkpoint's model. Raises UnsupportedModelError where tensors are not what it needs."""
    model, found = AutoModelForCausalLM.from_pretrained(
        location.name,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # else the error does not name them
        **location.options,
        **location.weights_options,
    )
    for what in ("missing", "unexpected", "mismatched"):
        keys = found.get(f"{what}_keys", ())
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise UnsupportedModelError(
                f"{location.name}: {what} tensors: {', '.join(names[:_NAMED])}{more}: the "
                "checkpoint is not whole, or not of this architecture"
            )
    return model


def leave_checkpoint(model: nn.Module) -> None:
    """Copy what is left of the weights out of the mapped file, which its last view holds whole."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def architecture_of(config: PreTrainedConfig) -> str:
    """The class that a checkpoint is of: as it says, or else what its model type is as a decoder.

    GGUF files name no class, and some configs leave it out.
    """
    if config.architectures:
        return str(config.architectures[0])
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type))


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse by name what would not be served exactly."""
    name = architecture_of(config)
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope_type!r} is not supported; supported: {', '.join(_ROPE_TYPES)}"
        )


def kv_shape(config: PreTrainedConfig) -> KVShape:
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return KVShape(int(config.num_hidden_layers), int(kv_heads), int(head_dim))


def base_spec(
    name: str,
    model: nn.Module,
    linears: dict[str, LinearShape],
    embeddings: Mapping[str, EmbeddingSpec] = MappingProxyType({}),
) -> BaseModelSpec:
    """What the store needs to know of a model in order to check adapters."""
    wrapped = tuple(f"{path}.base" for path in linears)
    others = {
        path.rpartition(".")[0]
        for path, _ in model.named_parameters()
        if not path.startswith(wrapped)
    }
    config: Any = model.config
    return BaseModelSpec(
        name=name,
        architecture=type(model).__name__,
        linears=linears,
        other_modules=tuple(sorted(others)),
        blocks=blocks_of(model),
        hidden_size=int(config.hidden_size),
        num_heads=int(config.num_attention_heads),
        embeddings=embeddings,
    )


def blocks_of(model: nn.Module) -> tuple[BlockSpec, ...]:
    """The decoder's layers: GPT-2 calls its attention `attn`, the others `self_attn`."""
    path, layers = layers_of(model)
    blocks = []
    for index, layer in enumerate(layers):
        attention = "attn" if hasattr(layer, "attn") else "self_attn"
        here = f"{path}.{index}"
        blocks.append(BlockSpec(here, f"{here}.{attention}", f"{here}.mlp"))
    return tuple(blocks)


@dataclass(frozen=True, slots=True)
class _Location:
    """Where transformers finds the model, and the options that it needs for that."""

    name: str
    options: dict[str, Any]
    weights_options: dict[str, Any]

    @classmethod
    def of(cls, model: str) -> _Location:
        path = Path(model).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise UnsupportedModelError(f"{model} is not a file")
            return cls(
                str(path.parent),
                {"gguf_file": path.name},
                {"quantization_config": GgufConfig(dequantize=True)},
            )
        return cls(str(path) if path.exists() else model, {}, {})


def dtype_of(
    config: ModelConfig, described: PreTrainedConfig, device: torch.device
) -> torch.dtype | Literal["auto"]:
    """The format that a model is loaded in; "auto": as its checkpoint is stored."""
    if config.dtype != "auto":
        found: torch.dtype = getattr(torch, config.dtype)
        return found
    has_decoder = architecture_of(described) in DECODER_FAMILIES
    return auto_dtype(described, device, has_decoder=has_decoder)


def _device(config: ModelConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config or GenerationConfig()
    ids = generation.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
