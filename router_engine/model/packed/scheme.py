"""How a quantised checkpoint says that its linear layers are stored: `quantization_config`.

Needs no torch, as `model.checkpoint` looks at it before anything that computes is started.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_engine.errors import UnsupportedModelError

_BITS = (4, 8)
_PACKED = "pack-quantized"
_WHOLE = ("int-quantized", "float-quantized", "naive-quantized")
# What is stored, by the names that safetensors has for it.
STORED = {"I32": "int32", "I64": "int64", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class Awq:
    """Four bits with a scale and a zero for each group of inputs.

    Source: Lin et al., "AWQ", 2023; the layout is that of its kernels for products (`gemm`).
    """

    group_size: int


@dataclass(frozen=True, slots=True)
class Gptq:
    """Bits with a scale and a zero for each group of inputs, which `g_idx` may name.

    zero_offset: to be added to a stored zero. Source: Frantar et al., "GPTQ", 2022; in the layout
    of AutoGPTQ, whose first format keeps zeros less one.
    """

    bits: int
    group_size: int  # -1: all inputs
    zero_offset: int


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Of one group of layers.

    bits: of a weight. group_size: inputs that have one scale; -1: all. block: outputs and inputs.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int = -1
    block: tuple[int, int] | None = None

    def matches(self, path: str) -> bool:
        """Whether a layer is one of them: by a class, a pattern, its path or the end of that."""
        return any(_matches(target, path) for target in self.targets)


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """Layers as the library of that name writes them, by groups; those of none are stored plain."""

    formats: tuple[WeightFormat, ...]

    def format_of(self, path: str) -> WeightFormat:
        """Raises UnsupportedModelError for a layer that is packed, and of no group."""
        for each in self.formats:
            if each.matches(path):
                return each
        raise UnsupportedModelError(
            f"{path} is packed, but config_groups of the quantization_config names it nowhere"
        )


@dataclass(frozen=True, slots=True)
class Fp8:
    """fp8 (e4m3) with a scale a block of the weight, or one for all of it."""

    block: tuple[int, int] | None  # outputs, inputs


Scheme = Awq | Gptq | CompressedTensors | Fp8


def scheme_of(config: Any, where: str) -> Scheme:
    """What a `quantization_config` says. Raises UnsupportedModelError for what is not read."""
    if not isinstance(config, Mapping):
        raise UnsupportedModelError(f"{where}: quantization_config is no object")
    method = config.get("quant_method")
    readers: dict[str, Callable[[_Keys], Scheme]] = {
        "awq": _awq,
        "gptq": _gptq,
        "compressed-tensors": _compressed,
        "fp8": _fp8,
    }
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModelError(
            f"{where}: its weights are quantised ({method or 'quantization_config'}), which is not "
            f"read; {', '.join(readers)} are: take one of those, the checkpoint that it was made "
            "from, with --quantization int8 for weights of 8 bits, or a GGUF file"
        )
    return readers[method](_Keys(config, where, method))


class _Keys:
    """The keys of a config, with errors that name them."""

    def __init__(self, config: Mapping[str, Any], where: str, method: str) -> None:
        self._config = config
        self._where = where
        self.method = method

    def get(self, key: str, default: Any = None) -> Any:
        value = self._config.get(key)
        return default if value is None else value

    def one_of(self, key: str, values: Sequence[Any], default: Any) -> Any:
        value = self.get(key, default)
        if value not in values or isinstance(value, bool) != isinstance(values[0], bool):
            raise self.refused(f"{key} is {value!r}: {', '.join(map(repr, values))} are read")
        return value

    def group_size(self, size: Any) -> int:
        """A number of inputs. Raises UnsupportedModelError for what is none."""
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
            raise self.refused(f"group_size is {str(size)[:40]}: -1 or a number of inputs is")
        return size

    def refused(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._where}: quantization_config of {self.method}: {what}")


def _awq(keys: _Keys) -> Awq:
    keys.one_of("bits", (4,), 4)
    version = str(keys.get("version", "gemm")).lower()
    if version != "gemm":
        raise keys.refused(f"version is {version!r}: 'gemm' is read")
    if keys.get("zero_point", default=True) is not True:
        raise keys.refused("zero_point is not true: weights with zeros are read")
    return Awq(keys.group_size(keys.get("group_size", 128)))


def _gptq(keys: _Keys) -> Gptq:
    bits = keys.one_of("bits", _BITS, 4)
    form = keys.one_of("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    return Gptq(
        bits, keys.group_size(keys.get("group_size", 128)), zero_offset=1 if form == "gptq" else 0
    )


def _compressed(keys: _Keys) -> CompressedTensors:
    form = keys.one_of("format", (_PACKED, *_WHOLE), _PACKED)
    if (keys.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise keys.refused("sparsity_config is given: dense weights are read")
    groups = keys.get("config_groups", {})
    if not isinstance(groups, Mapping) or not groups:
        raise keys.refused("config_groups is empty: it says which layers are stored how")
    return CompressedTensors(tuple(_format(keys, form, group) for group in groups.values()))


def _format(keys: _Keys, form: str, group: Any) -> WeightFormat:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or not isinstance(targets, list):
        raise keys.refused("a group of config_groups lacks weights or targets")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 0)
    form = group.get("format") or form
    block = None
    if weights.get("strategy") == "block":
        block = _two(keys, "block_structure", weights.get("block_structure"))
    is_read = (form, kind) == (_PACKED, "int") and bits in _BITS and block is None
    if is_read or (form in _WHOLE and bits == 8 and kind in ("int", "float")):
        size = weights.get("group_size")
        size = -1 if size is None or weights.get("strategy") in ("channel", "tensor") else size
        return WeightFormat(tuple(map(str, targets)), int(bits), keys.group_size(size), block)
    raise keys.refused(
        f"weights of {bits} bits ({kind}) in the format {form!r}: int of 4 and 8 bits in "
        f"{_PACKED!r}, and int and float of 8 bits in {', '.join(map(repr, _WHOLE))} are read"
    )


def _fp8(keys: _Keys) -> Fp8:
    keys.one_of("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    block = keys.get("weight_block_size")
    return Fp8(None if block is None else _two(keys, "weight_block_size", block))


def _two(keys: _Keys, key: str, block: Any) -> tuple[int, int]:
    if not isinstance(block, list) or len(block) != 2:
        raise keys.refused(f"{key} is {str(block)[:40]}: two numbers are read")
    outputs, inputs = block
    if not all(isinstance(side, int) and side > 0 for side in block):
        raise keys.refused(f"{key} is {str(block)[:40]}: numbers above 0 are read")
    return outputs, inputs


def _matches(target: str, path: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), path) is not None
    return target == "Linear" or path == target or path.endswith(f".{target}")
