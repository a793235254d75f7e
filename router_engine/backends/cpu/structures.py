"""The structures that Python hands to C++. Layouts mirror `src/spec.h`, field by field.

XStruct is X there. Their sizes are compared as a library is loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from types import MappingProxyType

from adapters_store.expert_kinds.base import Activation
from router_engine.backends.cpu.build import KernelBuildError


class LinearStruct(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("module", c_int32),
        ("is_int8", c_int32),
    )


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class LayerStruct(Structure):
    _fields_ = (
        *((name, LinearStruct) for name in LINEARS),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int64),
        ("parallel", c_int32),
        ("serial", c_int32),
        ("prompt", c_int32),
    )


class ModelSpecStruct(Structure):
    _fields_ = (
        ("layers", POINTER(LayerStruct)),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("frequencies", c_void_p),
        ("head", LinearStruct),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("intermediate", c_int32),
        ("block_size", c_int32),
        ("epsilon", c_float),
        ("attention_scale", c_float),
        ("rope_scale", c_float),
    )


class ExpertStruct(Structure):
    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int32),
        ("scale_root", c_float),
        ("prototype", c_void_p),
        ("gate", c_void_p),  # null: no row has one
        ("bias", c_void_p),
        ("activation", c_int32),
        ("has_up_bias", c_int32),
    )


# `Activation` in src/activation.h. None: of experts that are no bottlenecks.
ACTIVATIONS: Mapping[Activation | None, int] = MappingProxyType(
    {None: 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4}
)


class GatingNetworkStruct(Structure):
    _fields_ = (
        ("wide", c_void_p),
        ("wide_bias", c_void_p),
        ("narrow", c_void_p),
        ("narrow_bias", c_void_p),
        ("rows", c_int32),
        ("outputs", c_int32),
        ("hidden", c_int32),
        ("pre_norm", c_int32),
        ("top_k", c_int32),
        ("threshold", c_int32),
        ("maximum", c_float),
        ("of_prompts", c_int32),
    )


# `Threshold` in src/gating.h.
THRESHOLDS = MappingProxyType({"none": 0, "constant": 1, "network": 2})


class LayerRoutedTokensStruct(Structure):
    _fields_ = (
        ("top_k", c_void_p),  # null: no token is routed
        ("temperature", c_void_p),
        ("candidates", c_void_p),
    )


class PromptStruct(Structure):
    _fields_ = (
        ("column", c_int32),
        ("first", c_int32),
        ("count", c_int32),
        ("prompt", c_int32),
    )


class GatingStruct(Structure):
    _fields_ = (
        ("networks", c_void_p),  # [columns] addresses of arrays of GatingNetworkStruct
        ("first", c_void_p),
        ("gates", c_void_p),
        ("prompts", c_void_p),  # [num_prompts] of PromptStruct
        ("num_prompts", c_int32),
        ("width", c_int32),
    )


class WeightsStruct(Structure):
    _fields_ = (
        ("columns", c_int32),
        ("experts", c_void_p),  # [columns] addresses of arrays of ExpertStruct
        ("sum_weights", c_void_p),
        ("sqrt_weights", c_void_p),
        ("merged_sqrt_weights", c_void_p),
        ("routed", LayerRoutedTokensStruct),
        ("gating", GatingStruct),
        ("has_other_sites", c_int32),
    )


class RowStruct(Structure):
    """In `src/attention.h`; steps hand rows over as an array [rows, 4] of int32."""

    _fields_ = (
        ("first", c_int32),
        ("length", c_int32),
        ("start", c_int32),
        ("table", c_int32),
    )


class StepStruct(Structure):
    _fields_ = (
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("rows", c_void_p),
        ("blocks", c_void_p),
        ("sample_index", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
        ("normaliser", c_void_p),
        ("weights", WeightsStruct),
        ("below_probe", WeightsStruct),
        ("hidden_states", c_void_p),
        ("finite", c_void_p),
        ("tokens", c_int32),
        ("num_rows", c_int32),
        ("samples", c_int32),
        ("logits_stride", c_int32),
        ("threads", c_int32),
        ("probe_layer", c_int32),
    )


STRUCTURES: tuple[type[Structure], ...] = (
    *(LinearStruct, LayerStruct, ModelSpecStruct, ExpertStruct, GatingNetworkStruct),
    *(LayerRoutedTokensStruct, PromptStruct, GatingStruct, WeightsStruct, StepStruct, RowStruct),
)


def check_layouts(size_of: Callable[[bytes], int], structures: Iterable[type[Structure]]) -> None:
    """Raises KernelBuildError, with the name, for a structure that the library lays out otherwise.

    size_of: the library's bytes of a structure, by the name that C++ gives it; -1: none has it.
    """
    for structure in structures:
        name = structure.__name__.removesuffix("Struct")
        ours, theirs = ctypes.sizeof(structure), size_of(name.encode())
        if ours != theirs:
            raise KernelBuildError(
                f"the library's structure {name} has {theirs} bytes, and {ours} here: it was "
                "compiled from other sources"
            )
