"""The compiled kernels as Python sees them. Layouts mirror `src/spec.h`, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from adapters_store.expert_types import Activation

DTYPES = (torch.bfloat16, torch.float32)  # of activations, cache and adapters
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of weights


class Linear(Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("module", c_int32),
        ("is_int8", c_int32),
    )


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class Layer(Structure):
    _fields_ = (
        *((name, Linear) for name in LINEARS),
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


class ModelSpec(Structure):
    _fields_ = (
        ("layers", POINTER(Layer)),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("frequencies", c_void_p),
        ("head", Linear),
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


class Expert(Structure):
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


class Router(Structure):
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


class Gates(Structure):
    _fields_ = (
        ("top_k", c_void_p),  # null: no token has a gate
        ("temperature", c_void_p),
        ("candidates", c_void_p),
    )


class Prompt(Structure):
    _fields_ = (
        ("column", c_int32),
        ("first", c_int32),
        ("count", c_int32),
        ("prompt", c_int32),
    )


class Routing(Structure):
    _fields_ = (
        ("routers", c_void_p),  # [columns] addresses of arrays of Router
        ("first", c_void_p),
        ("gates", c_void_p),
        ("prompts", c_void_p),  # [num_prompts] of Prompt
        ("num_prompts", c_int32),
        ("width", c_int32),
    )


class Weights(Structure):
    _fields_ = (
        ("columns", c_int32),
        ("experts", c_void_p),  # [columns] addresses of arrays of Expert
        ("total", c_void_p),
        ("root", c_void_p),
        ("merged_root", c_void_p),
        ("gates", Gates),
        ("routing", Routing),
        ("beside", c_int32),
    )


class Step(Structure):
    _fields_ = (
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("rows", c_void_p),
        ("blocks", c_void_p),
        ("sample_index", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
        ("normaliser", c_void_p),
        ("weights", Weights),
        ("lower", Weights),
        ("tap", c_void_p),
        ("tokens", c_int32),
        ("num_rows", c_int32),
        ("samples", c_int32),
        ("logits_stride", c_int32),
        ("threads", c_int32),
        ("tap_layer", c_int32),
    )


class Library:
    """The functions of `src/api.cpp`. Calls let go of the interpreter's lock."""

    def __init__(self, path: Path) -> None:
        handle = ctypes.CDLL(str(path))
        self._packed_bytes = handle.mix_packed_bytes
        self._packed_bytes.restype = c_int64
        self._packed_bytes.argtypes = (c_int32, c_int32, c_int32)
        self._pack = handle.mix_pack
        self._pack.restype = None
        self._pack.argtypes = (c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p)
        self._unpack = handle.mix_unpack
        self._unpack.restype = None
        self._unpack.argtypes = (c_int32, c_void_p, c_int32, c_int32, c_void_p)
        self._model_new = handle.mix_model_new
        self._model_new.restype = c_void_p
        self._model_new.argtypes = (c_int32, POINTER(ModelSpec))
        self._model_run = handle.mix_model_run
        self._model_run.restype = None
        self._model_run.argtypes = (c_void_p, POINTER(Step))
        self._model_free = handle.mix_model_free
        self._model_free.restype = None
        self._model_free.argtypes = (c_void_p,)
        self._large_pages = handle.mix_large_pages
        self._large_pages.restype = None
        self._large_pages.argtypes = (c_void_p, c_int64)
        self._trim = handle.mix_trim
        self._trim.restype = None
        self._trim.argtypes = ()
        self._linears = handle.mix_linears
        self._linears.restype = None
        self._linears.argtypes = (
            *(c_int32, c_void_p, POINTER(Linear), c_int32),
            *(c_int32, c_void_p, c_int32, c_int32),
        )

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
        self._pack(form, weight.data_ptr(), scales, outputs, inputs, packed.data_ptr())

    def unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight [outputs, inputs], in bf16 or fp32, that was packed."""
        weight = torch.empty(*shape, dtype=packed.dtype)
        outputs, inputs = shape
        form = _FORMATS[packed.dtype]
        self._unpack(form, packed.data_ptr(), outputs, inputs, weight.data_ptr())
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
            Linear(packed.data_ptr(), None, inputs, outputs, 0, packed.dtype == torch.int8)
            for packed in layers
        )
        self._linears(
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            (Linear * len(layers))(*specs),
            len(layers),
            rows,
            y.data_ptr(),
            stride,
            torch.get_num_threads(),
        )
        return y[:, :outputs]

    def new_model(self, dtype: torch.dtype, spec: ModelSpec) -> int:
        """A decoder; what `spec` points at must outlive it. Freed by `free_model`."""
        return int(self._model_new(dtype == torch.bfloat16, ctypes.byref(spec)))

    def run_model(self, model: int, step: Step) -> None:
        self._model_run(model, ctypes.byref(step))

    def free_model(self, model: int) -> None:
        self._model_free(model)
