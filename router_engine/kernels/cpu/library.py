"""The compiled kernels as Python sees them. Layouts mirror `src/spec.h`, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.errors import EngineError
from router_engine.kernels.cpu.build import known_isas

DTYPES = (torch.bfloat16, torch.float32)  # of activations, cache and adapters
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of weights


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


class ModelStruct(Structure):
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


class GatingStruct(Structure):
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


NO_THRESHOLD, CONSTANT_THRESHOLD, NET_THRESHOLD = 0, 1, 2  # `Threshold` in src/layer_router.h


class GateValuesStruct(Structure):
    _fields_ = (
        ("top_k", c_void_p),  # null: no token has a gate
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


class LayerRoutingStruct(Structure):
    _fields_ = (
        ("routers", c_void_p),  # [columns] addresses of arrays of GatingStruct
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
        ("total", c_void_p),
        ("root", c_void_p),
        ("merged_root", c_void_p),
        ("gates", GateValuesStruct),
        ("routing", LayerRoutingStruct),
        ("beside", c_int32),
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
        ("lower", WeightsStruct),
        ("hidden_states", c_void_p),
        ("finite", c_void_p),
        ("tokens", c_int32),
        ("num_rows", c_int32),
        ("samples", c_int32),
        ("logits_stride", c_int32),
        ("threads", c_int32),
        ("probe_layer", c_int32),
    )


def supported_isas(path: Path) -> tuple[str, ...]:
    """The instruction sets of a library that this machine runs, narrow to wide.

    Those past the one that ADAPTERMIX_CPU_ISA names are left out. Raises EngineError for a file
    that is no library.
    """
    handle = _load(path)
    compiled = (isa for isa in known_isas() if hasattr(handle, f"mix_{isa}_pack"))
    return tuple(isa for isa in compiled if handle.mix_runs(isa.encode()))


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the kernels cannot be loaded ({error}): delete {path}") from error


class Library:
    """The functions of `src/kernels.cpp` for one instruction set. Calls let go of the GIL."""

    def __init__(self, path: Path, isa: str | None = None) -> None:
        """isa: one of `supported_isas`; None: the widest of them. Raises EngineError."""
        handle = _load(path)
        isas = supported_isas(path)
        if not isas or (isa is not None and isa not in isas):
            raise EngineError(
                f"instruction set {isa or 'auto'!r} does not run here: {', '.join(isas) or 'none'} "
                "of the compiled ones do"
            )
        self.isa = isa or isas[-1]

        def function(name: str, result: Any, *arguments: Any, shared: bool = False) -> Any:
            found = getattr(handle, f"mix_{name}" if shared else f"mix_{self.isa}_{name}")
            found.restype, found.argtypes = result, arguments
            return found

        form_and_shape = (c_int32, c_int32, c_int32)
        self._packed_bytes = function("packed_bytes", c_int64, *form_and_shape)
        self._pack = function(
            *("pack", None, c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_int32)
        )
        self._unpack = function(
            *("unpack", None, c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32)
        )
        self._model_new = function("model_new", c_void_p, c_int32, POINTER(ModelStruct))
        self._model_run = function("model_run", None, c_void_p, POINTER(StepStruct))
        self._model_free = function("model_free", None, c_void_p)
        self._linears = function(
            *("linears", None, c_int32, c_void_p, POINTER(LinearStruct), c_int32),
            *(c_int32, c_void_p, c_int32, c_int32),
        )
        self._peak = function("peak", c_double, c_int32)
        self._large_pages = function("large_pages", None, c_void_p, c_int64, shared=True)
        self._trim = function("trim", None, shared=True)

    def packed_size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Elements of the packed form of a weight [outputs, inputs]."""
        outputs, inputs = shape
        return int(self._packed_bytes(_FORMATS[dtype], outputs, inputs)) // dtype.itemsize

    def pack(self, weight: Tensor, packed: Tensor, scale: Tensor | None = None) -> None:
        """Write the packed form of a contiguous weight [outputs, inputs] into `packed`.

        `scale` [outputs] in fp32 belongs to int8 weights alone.
        """
        outputs, inputs = weight.shape
        scales = None if scale is None else scale.data_ptr()
        form = _FORMATS[weight.dtype]
        threads = torch.get_num_threads()
        self._pack(form, weight.data_ptr(), scales, outputs, inputs, packed.data_ptr(), threads)

    def unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight [outputs, inputs], in bf16 or fp32, that was packed."""
        weight = torch.empty(*shape, dtype=packed.dtype)
        outputs, inputs = shape
        form = _FORMATS[packed.dtype]
        threads = torch.get_num_threads()
        self._unpack(form, packed.data_ptr(), outputs, inputs, weight.data_ptr(), threads)
        return weight

    def large_pages(self, tensor: Tensor) -> None:
        """Ask the system to hold a contiguous tensor in large pages."""
        self._large_pages(tensor.data_ptr(), tensor.nbytes)

    def trim(self) -> None:
        """Give freed memory back to the system."""
        self._trim()

    def linears(self, x: Tensor, layers: Sequence[Tensor], outputs: int) -> Tensor:
        """x [rows, inputs] through packed layers of equal shape, all from x; the last one's y.

        y is [rows, outputs] in fp32; x is contiguous, in the weights' format if they aren't int8.
        """
        rows, inputs = x.shape
        stride = -(-outputs // 16) * 16
        y = torch.empty(rows, stride)
        specs = (
            LinearStruct(packed.data_ptr(), None, inputs, outputs, 0, packed.dtype == torch.int8)
            for packed in layers
        )
        self._linears(
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            (LinearStruct * len(layers))(*specs),
            len(layers),
            rows,
            y.data_ptr(),
            stride,
            torch.get_num_threads(),
        )
        return y[:, :outputs]

    def peak(self) -> float:
        """Operations a second in fp32 that all threads reach in registers alone."""
        return float(self._peak(torch.get_num_threads()))

    def new_model(self, dtype: torch.dtype, spec: ModelStruct) -> int:
        """A decoder; what `spec` points at must outlive it. Freed by `free_model`."""
        return int(self._model_new(dtype == torch.bfloat16, ctypes.byref(spec)))

    def run_model(self, model: int, step: StepStruct) -> None:
        self._model_run(model, ctypes.byref(step))

    def free_model(self, model: int) -> None:
        self._model_free(model)
