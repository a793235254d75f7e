"""Reads the tensors of a quantised checkpoint, its linear layers unpacked one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from router_engine.errors import UnsupportedModelError
from router_engine.model.packed.scheme import (
    Awq,
    CompressedTensors,
    Fp8,
    Gptq,
    Scheme,
    WeightFormat,
)
from router_engine.model.packed.unpack import (
    awq,
    gptq,
    in_blocks,
    in_turn,
    packed_rows,
    scaled,
)

# By what only a packed layer has; what else belongs to it is read with it.
_MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")
# Of inputs and of keys and values, which stay in 16 bits here.
_UNREAD = (
    *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
    *("k_scale", "v_scale", "q_scale"),
)
_PARTS = (
    *("qweight", "qzeros", "scales", "g_idx"),
    *("weight", "weight_packed", "weight_scale", "weight_scale_inv"),
    *("weight_zero_point", "weight_shape", "weight_g_idx"),
)

Read = Callable[[str], Tensor]


class _Layer:
    """The tensors of one packed layer, by the ends of their names."""

    def __init__(self, path: str, names: Iterable[str], read: Read) -> None:
        self.path = path
        self._names = frozenset(names)
        self._read = read

    def get(self, part: str) -> Tensor | None:
        return self._read(f"{self.path}.{part}") if part in self._names else None

    def __getitem__(self, part: str) -> Tensor:
        found = self.get(part)
        if found is None:
            raise UnsupportedModelError(
                f"{self.path} lacks {part}, without which its weight cannot be read"
            )
        return found

    def __contains__(self, part: str) -> bool:
        return part in self._names


def read_unpacked(files: Iterable[Path], scheme: Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors by their names, weights of packed layers as plain ones in `dtype`.

    Raises UnsupportedModelError for a layer that lacks a part, or whose parts do not fit together,
    and where no layer is packed.
    """
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            places |= dict.fromkeys(opened.keys(), opened)

        def read(name: str) -> Tensor:
            tensor: Tensor = places[name].get_tensor(name)
            return tensor

        packed = _packed_layers(places)
        if not packed:
            raise UnsupportedModelError("by its quantization_config it is quantised; no layer is")
        tensors = {
            name: _plain(read(name), dtype)
            for name in places
            if not _belongs(name, packed) and not name.endswith(_UNREAD)
        }
        for path, parts in packed.items():
            layer = _Layer(path, parts, read)
            tensors[f"{path}.weight"] = _weight(layer, scheme).to(dtype)
        return tensors


def _packed_layers(names: Iterable[str]) -> dict[str, set[str]]:
    """The parts of each packed layer, by its path."""
    parts: dict[str, set[str]] = {}
    for name in names:
        path, _, last = name.rpartition(".")
        if last in _PARTS:
            parts.setdefault(path, set()).add(last)
    return {path: found for path, found in parts.items() if not found.isdisjoint(_MARKS)}


def _belongs(name: str, packed: Mapping[str, set[str]]) -> bool:
    path, _, last = name.rpartition(".")
    return last in packed.get(path, ())


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _weight(layer: _Layer, scheme: Scheme) -> Tensor:
    """[out, in] in fp32."""
    try:
        match scheme:
            case Awq(group_size):
                return awq(layer["qweight"], layer["qzeros"], layer["scales"], group_size)
            case Gptq():
                return _gptq(layer, scheme)
            case CompressedTensors():
                return _compressed(layer, scheme.format_of(layer.path))
            case Fp8(block):
                form = WeightFormat((), 8, block=block)
                return _in_8_bits(layer["weight"], layer["weight_scale_inv"], None, form)
    except (RuntimeError, IndexError, ValueError) as error:
        raise UnsupportedModelError(
            f"the parts of {layer.path} do not fit together: {error}"
        ) from error


def _gptq(layer: _Layer, scheme: Gptq) -> Tensor:
    words, scales, groups = layer["qweight"], layer["scales"], layer.get("g_idx")
    if groups is None:
        inputs = len(words) * 32 // scheme.bits
        groups = in_turn(inputs, scheme.group_size, len(scales))
    parts = words, layer["qzeros"], scales, groups.long()
    return gptq(*parts, bits=scheme.bits, zero_offset=scheme.zero_offset)


def _compressed(layer: _Layer, form: WeightFormat) -> Tensor:
    scale, zeros = layer["weight_scale"], layer.get("weight_zero_point")
    if "weight_packed" not in layer:
        return _in_8_bits(layer["weight"], scale, zeros, form)
    outputs, inputs = layer["weight_shape"].tolist()
    values = packed_rows(layer["weight_packed"], form.bits, inputs)
    if zeros is not None:  # packed along the outputs
        zeros = packed_rows(zeros.T, form.bits, outputs).T
    groups = layer.get("weight_g_idx")
    if groups is None:
        groups = in_turn(inputs, form.group_size, scale.shape[1])
    return scaled(values, scale, zeros, groups.long())


def _in_8_bits(values: Tensor, scale: Tensor, zeros: Tensor | None, form: WeightFormat) -> Tensor:
    if form.block is not None:
        return in_blocks(values, scale, form.block)
    if form.group_size != -1:
        groups = in_turn(values.shape[1], form.group_size, scale.shape[1])
        return scaled(values, scale, zeros, groups)
    if scale.numel() not in (1, len(values)):
        raise ValueError(f"{len(values)} outputs, and scales {list(scale.shape)}")
    return scaled(values, scale, zeros)
