"""What a model takes of a device's memory, told by its shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from adapters_store.device_size import device_bytes
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.home import expanded
from adapters_store.types import AdapterManifest, BaseModelSpec
from router_engine.config import TINY_RANDOM, ModelConfig
from router_engine.kv.paged_cache import KVShape
from router_engine.model.attention_calls import attention_calls
from router_engine.model.checkpoint import called, refused
from router_engine.model.layout import shape_of
from router_engine.model.loader import (
    base_spec,
    check_supported,
    described_by,
    dtype_of,
    kv_shape,
)
from router_engine.model.tiny import tiny_config

_RANK = 16  # of the adapters that a table counts
_SCALE = 4  # bytes of an output's, in 8 bits


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model: bytes, and numbers that one token has in a step."""

    weight_bytes: int
    num_parameters: int
    dtype: torch.dtype  # of what a step computes with
    kv: KVShape
    attention: int  # of a token's query, keys and values together
    feed_forward: int  # of what a token's widest linear layers give
    vocab: int
    max_model_len: int  # tokens
    base: BaseModelSpec

    @property
    def kv_token_bytes(self) -> int:
        return self.kv.bytes_per_token(self.dtype)

    def lora_bytes(self, rank: int) -> int:
        """What a LoRA of this rank on every linear layer of the blocks takes on the device."""
        prefixes = tuple(f"{block.path}." for block in self.base.blocks)
        experts = tuple(
            LoraExpertSpec(path, rank, 1.0, shape.in_features, shape.out_features, "", "")
            for path, shape in self.base.linears.items()
            if path.startswith(prefixes)
        )
        return device_bytes(AdapterManifest("peft", experts), self.base)

    @property
    def weights_told(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        count, unit = self.num_parameters / 1e6, "M"
        if count >= 1000:
            count, unit = count / 1000, "B"
        return f"{count:.2f} {unit} parameters, {dtype}"

    def adapters_told(self, num_bytes: int) -> str:
        """How many adapters have room in so many bytes, for people."""
        count = num_bytes // self.lora_bytes(_RANK)
        return f"{count:,} of rank {_RANK} on every linear layer"


def sizes_of(model: nn.Module, kv: KVShape, dtype: torch.dtype, base: BaseModelSpec) -> ModelSizes:
    """The sizes of a model that is there, or of its outline on `meta`."""
    built: Any = model
    held = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    first = f"{base.blocks[0].path}."
    widths = {
        path.rpartition(".")[2]: shape.out_features
        for path, shape in base.linears.items()
        if path.startswith(first)
    }
    apart = [widths.get(name, 0) for name in ("q_proj", "k_proj", "v_proj")]
    gated = [widths.get(name, 0) for name in ("gate_proj", "up_proj")]
    return ModelSizes(
        weight_bytes=sum(each.nbytes for each in held),
        num_parameters=sum(each.numel() for each in held),
        dtype=dtype,
        kv=kv,
        attention=sum(apart) or max(widths.values()),
        feed_forward=sum(gated) or max(widths.values()),
        vocab=int(built.get_input_embeddings().weight.shape[0]),
        max_model_len=int(built.config.max_position_embeddings),
        base=base,
    )


def sizes_of_checkpoint(config: ModelConfig, device: torch.device) -> ModelSizes:
    """The sizes that a checkpoint would have on a device, by its config alone.

    Raises UnsupportedModelError for one that is not served.
    """
    described = _described(config.model, config.revision)
    dtype = dtype_of(config, described, device)
    if dtype == "auto":
        dtype = getattr(described, "dtype", None) or torch.float32
    make = partial(
        AutoModelForCausalLM.from_config, described, dtype=dtype, trust_remote_code=False
    )
    no_code = "its own code cannot run it"
    with torch.device("meta"):
        model = refused(config.model, no_code, make)
    kv = kv_shape(refused(config.model, no_code, partial(attention_calls, model)))
    linears = {
        path: shape_of(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    base = replace(base_spec(config.model, model, linears), element_bytes=dtype.itemsize)
    sizes = sizes_of(model, kv, dtype, base)
    if config.quantization == "none":
        return sizes
    embedding: Any = model.get_input_embeddings()
    layers: list[Any] = [model.get_submodule(path) for path in linears]
    held = sum(each.weight.nbytes for each in layers if each.weight is not embedding.weight)
    integers = sum(each.weight.numel() + _SCALE * each.weight.shape[0] for each in layers)
    return replace(sizes, weight_bytes=sizes.weight_bytes - held + integers)


def _described(model: str, revision: str | None) -> PreTrainedConfig:
    """The config; a directory needs to hold nothing else."""
    path = expanded(model)
    if model == TINY_RANDOM:
        return tiny_config()
    if not (path / "config.json").is_file():
        return described_by(model, revision, with_tokenizer=False)
    read = partial(AutoConfig.from_pretrained, str(path), trust_remote_code=False)
    described: PreTrainedConfig = refused(called(model), "its config cannot be read", read)
    check_supported(described)
    return described
