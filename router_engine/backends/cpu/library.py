"""The compiled kernels as Python calls them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from router_engine.backends.cpu.build import known_isas
from router_engine.backends.cpu.structures import (
    STRUCTURES,
    LinearStruct,
    ModelSpecStruct,
    StepStruct,
    check_layouts,
)
from router_engine.errors import EngineError

DTYPES = (torch.bfloat16, torch.float32)  # of activations, cache and adapters
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of weights


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
        """isa: one of `supported_isas`; None: the widest of them. Raises EngineError.

        Also for a library whose structures are laid out otherwise than Python's.
        """
        handle = _load(path)
        isas = supported_isas(path)
        if not isas or (isa is not None and isa not in isas):
            raise EngineError(
                f"instruction set {isa or 'auto'!r} does not run here: {', '.join(isas) or 'none'} "
                "of the compiled ones do"
            )
        self.isa = isa or isas[-1]

        def function(name: str, result: Any, *arguments: Any, shared: bool = False) -> Any:
            called = getattr(handle, f"mix_{name}" if shared else f"mix_{self.isa}_{name}")
            called.restype, called.argtypes = result, arguments
            return called

        check_layouts(function("size_of", c_int64, c_char_p), STRUCTURES)
        form_and_shape = (c_int32, c_int32, c_int32)
        self._packed_bytes = function("packed_bytes", c_int64, *form_and_shape)
        self._pack = function(
            *("pack", None, c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_int32)
        )
        self._unpack = function(
            *("unpack", None, c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32)
        )
        self._model_new = function("model_new", c_void_p, c_int32, POINTER(ModelSpecStruct))
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

    def new_model(self, dtype: torch.dtype, spec: ModelSpecStruct) -> int:
        """A decoder; what `spec` points at must outlive it. Freed by `free_model`."""
        return int(self._model_new(dtype == torch.bfloat16, ctypes.byref(spec)))

    def run_model(self, model: int, step: StepStruct) -> None:
        self._model_run(model, ctypes.byref(step))

    def free_model(self, model: int) -> None:
        self._model_free(model)
