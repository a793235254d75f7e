"""Loads a base model: a checkpoint directory, a hub id, a GGUF file, or the tiny random one."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from transformers.utils import logging as transformers_logging

from adapters_store.types import BaseModelSpec, BlockSpec, EmbeddingSpec, LinearShape
from router_engine.config import ModelConfig, Quantization
from router_engine.errors import UnsupportedModelError
from router_engine.hub import check_revision, place_of
from router_engine.kv.paged_cache import KVShape
from router_engine.model.attention_calls import AttentionCall, attention_calls
from router_engine.model.checkpoint import (
    ROPE_TYPES,
    SUPPORTED,
    architecture,
    called,
    check_config,
    check_model,
    is_gguf,
    refused,
    stored_dtype,
)
from router_engine.model.dtypes import auto_dtype
from router_engine.model.embeddings import embedding_specs
from router_engine.model.gguf_config import alone, read_config, refuse_unread
from router_engine.model.layout import DECODER_FAMILIES, shape_of
from router_engine.model.packed.load import read_packed
from router_engine.model.probe import layers_of, probe_layer_of
from router_engine.model.quantized import quantize_linears
from router_engine.model.tiny import TINY_RANDOM, tiny_model

_log = logging.getLogger(__name__)
_NAMED = 8  # tensors, where many are wrong
_GENERATION = "generation_config.json"

_ATTENTION = "sdpa"  # until ours is put in, whatever a config says
_WITHOUT_ROPE = ("gpt2",)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    probe_layer: int = 0  # see model.probe
    embeddings: Mapping[str, EmbeddingSpec] = field(default_factory=dict)
    attention: tuple[AttentionCall, ...] = ()  # by layer


def load_model(config: ModelConfig) -> LoadedModel:
    """Load weights and put our attention function in.

    Raises UnsupportedModelError for an architecture or option that is not served exactly, a device
    that is not there, or where the quantization that is asked for cannot be done.
    """
    device = _device(config)
    check_revision(config.model, config.revision)
    if config.model == TINY_RANDOM:
        model: PreTrainedModel = tiny_model()
        if config.dtype != "auto":
            model = model.to(dtype=getattr(torch, config.dtype))
    else:
        described = described_by(config.model, config.revision)
        dtype = dtype_of(config, described, device)
        model = _read(config.model, described, dtype, config.revision)
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    embeddings = embedding_specs(model)
    if config.quantization == "int8":
        quantize_linears(model)
        leave_checkpoint(model)
    calls = refused(config.model, "its own code cannot run it", lambda: attention_calls(model))
    _check_built(config.model, model)
    return LoadedModel(
        model=model,
        kv_shape=kv_shape(calls),
        max_model_len=int(model.config.max_position_embeddings),
        eos_token_ids=_eos_ids(config.model, model),
        dtype=model.dtype,
        device=device,
        quantization=config.quantization,
        probe_layer=probe_layer_of(model, config.probe_layer),
        embeddings=embeddings,
        attention=calls,
    )


def described_by(
    model: str, revision: str | None = None, *, with_tokenizer: bool = True
) -> PreTrainedConfig:
    """The config of a checkpoint, checked. Raises UnsupportedModelError as `load_model` does.

    revision: branch, tag or commit of a hub id.
    """
    place, options = place_of(model, revision)
    path = Path(place)
    if path.exists():
        check_model(path, with_tokenizer=with_tokenizer)
    if is_gguf(path):
        if not path.is_file():
            raise UnsupportedModelError(f"{model} is not a file")
        read = functools.partial(read_config, path)
    else:
        read = functools.partial(
            AutoConfig.from_pretrained, place, trust_remote_code=False, **options
        )
    described: PreTrainedConfig = refused(called(model), "its config cannot be read", read)
    check_supported(described)
    if path.is_dir() and getattr(described, "dtype", None) is None:
        described.dtype = getattr(torch, stored_dtype(path))
    # A config may ask for other outputs: what reads them says what it wants.
    described.return_dict = True
    described.output_attentions = described.output_hidden_states = False
    return described


def read_checkpoint(model: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    """A checkpoint as transformers' own model, for which it needs no tokenizer.

    Raises UnsupportedModelError as `load_model` does.
    """
    described = described_by(model, revision, with_tokenizer=False)
    read = _read(model, described, dtype, revision)
    refused(model, "its own code cannot run it", functools.partial(attention_calls, read))
    _check_built(model, read)
    _eos_ids(model, read)
    return read


def _check_built(name: str, model: PreTrainedModel) -> None:
    built = type(model).__name__
    if built not in SUPPORTED:
        raise UnsupportedModelError(
            f"{name}: transformers makes a {built} of its config, which is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    if model.dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{name} is in {model.dtype}, which is not served: use --dtype float32 or bfloat16"
        )
    positions = int(model.config.max_position_embeddings)
    if positions < 1:
        raise UnsupportedModelError(f"{name}: max_position_embeddings is {positions}")


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """transformers' bars only where somebody can see them move: a log takes each as lines."""
    if sys.stderr.isatty() or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _read(
    name: str,
    described: PreTrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    revision: str | None,
) -> PreTrainedModel:
    """The checkpoint's model. Raises UnsupportedModelError where tensors are not what it needs."""
    place, options = place_of(name, revision)
    path = Path(place)
    if getattr(described, "quantization_config", None):
        built = read_packed(name, described, dtype, revision, attn_implementation=_ATTENTION)
        return _checked(name, path, described, built)
    with _source(place) as (file, of_a_file):
        read = functools.partial(
            AutoModelForCausalLM.from_pretrained,
            file,
            config=described,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else the error does not name them
            attn_implementation=_ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
            **of_a_file,
        )
        with _bars_on_terminals():
            built = refused(called(name), "its weights cannot be loaded", read)
    return _checked(name, path, described, built)


def _checked(
    name: str,
    path: Path,
    described: PreTrainedConfig,
    built: tuple[PreTrainedModel, Mapping[str, Any]],
) -> PreTrainedModel:
    """The model of a checkpoint, if its tensors are what it needs."""
    model, report = built
    model.config._name_or_path = name
    for what in ("missing", "unexpected", "mismatched"):
        keys = report.get(f"{what}_keys", ())
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise UnsupportedModelError(
                f"{name}: {what} tensors: {', '.join(names[:_NAMED])}{more}: the "
                "checkpoint is not whole, or not of this architecture"
            )
    if is_gguf(path):
        refuse_unread(path, model)
    elif (path / _GENERATION).is_file():  # which transformers passes over where it is broken
        generation = functools.partial(GenerationConfig.from_pretrained, path)
        refused(name, f"its {_GENERATION} cannot be read", generation)
    _check_class(name, described, model)
    return model


@contextmanager
def _source(place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where transformers finds the weights, and the options that it needs for that."""
    path = Path(place)
    if is_gguf(path):
        with alone(path) as (folder, file):
            yield folder, {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        yield place, {}


def _check_class(name: str, described: PreTrainedConfig, model: PreTrainedModel) -> None:
    built, named = type(model).__name__, architecture_of(described)
    if built in SUPPORTED and built != named:
        raise UnsupportedModelError(
            f"{name}: its config names the architecture {named}, but transformers makes a {built} "
            "of it: set architectures and model_type of config.json to those of one model"
        )


def leave_checkpoint(model: nn.Module) -> None:
    """Copy what is left of the weights out of the mapped file, which its last view holds whole."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def architecture_of(config: PreTrainedConfig) -> str:
    """The class that a checkpoint is of; see `checkpoint.architecture`."""
    return architecture(config.architectures, config.model_type)


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse by name what would not be served exactly."""
    check_config(config.to_dict(), "this model")
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ROPE_TYPES and config.model_type not in _WITHOUT_ROPE:
        raise UnsupportedModelError(
            f"rope_type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )


def kv_shape(calls: Sequence[AttentionCall]) -> KVShape:
    """What a token takes of the cache. Raises UnsupportedModelError where layers differ."""
    shapes = {(call.kv_heads, call.head_dim) for call in calls}
    if len(shapes) != 1:
        raise UnsupportedModelError(f"layers differ in their keys' heads and width: {shapes}")
    ((kv_heads, head_dim),) = shapes
    return KVShape(len(calls), kv_heads, head_dim)


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
    blocks = blocks_of(model)
    built: Any = model
    embedding = built.get_input_embeddings()
    attention: Any = model.get_submodule(blocks[0].attention)
    output = attention.o_proj if hasattr(attention, "o_proj") else attention.c_proj
    return BaseModelSpec(
        name=name,
        architecture=type(model).__name__,
        linears=linears,
        other_modules=tuple(sorted(others)),
        blocks=blocks,
        hidden_size=int(embedding.weight.shape[1]),
        num_heads=shape_of(output).in_features // int(attention.head_dim),
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


def dtype_of(
    config: ModelConfig, described: PreTrainedConfig, device: torch.device
) -> torch.dtype | Literal["auto"]:
    """The format that a model is loaded in; "auto": as its checkpoint is stored."""
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    has_decoder = architecture_of(described) in DECODER_FAMILIES
    return auto_dtype(described, device, has_decoder=has_decoder)


def _device(config: ModelConfig) -> torch.device:
    """Where the model is to run. Raises UnsupportedModelError for a device that is not there."""
    is_there = torch.cuda.is_available()
    if config.device == "cuda" and not is_there:
        reason = "this torch was built without CUDA: install a build that has it"
        if torch.version.cuda is not None:
            reason = "torch sees no GPU: install NVIDIA's driver, and give a container the card"
        raise UnsupportedModelError(f"device is 'cuda', but {reason}, or use device 'cpu'")
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if is_there else "cpu")


def _eos_ids(name: str, model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end a text. Raises UnsupportedModelError for ids that are none."""
    generation = model.generation_config or GenerationConfig()
    in_config = _token_ids(name, "its config", model.config.eos_token_id)
    in_generation = _token_ids(name, _GENERATION, generation.eos_token_id)
    ids = (in_config if in_generation is None else in_generation) or ()
    embedding: Any = model.get_input_embeddings()
    vocabulary = range(int(embedding.weight.shape[0]))
    if outside := [token for token in ids if token not in vocabulary]:
        _log.warning(
            "%s: eos_token_id %s: the model has %d tokens, so these end no text",
            *(name, ", ".join(map(str, outside)), len(vocabulary)),
        )
    return tuple(token for token in ids if token in vocabulary)


def _token_ids(name: str, where: str, ids: Any) -> tuple[int, ...] | None:
    if ids is None:
        return None
    values = ids if isinstance(ids, list | tuple) else [ids]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in values):
        raise UnsupportedModelError(
            f"{name}: eos_token_id in {where} is {str(ids)[:80]}: a whole number or a list of them "
            "is supported"
        )
    return tuple(values)
