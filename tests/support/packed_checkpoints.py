"""Quantised checkpoints of tiny models, each in the layout that its tools write.

AWQ's and GPTQ's are written field by field, from what their kernels read; those of
compressed-tensors by that library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.tiny import save_family

GROUP = 32
Tensors = dict[str, Tensor]
Pack = Callable[[Tensor], tuple[Tensors, Tensor]]
"""A weight [out, in] -> its parts by the ends of their names, and what they stand for, in fp32."""


@dataclass(frozen=True, slots=True)
class Layout:
    """quantization_config, and how it stores a weight."""

    config: Mapping[str, Any]
    pack: Pack


def save_packed(root: Path, layout: Layout, family: str = "llama") -> tuple[Path, Path]:
    """A checkpoint in a layout, and a plain one of the weights that it stands for, in fp32."""
    plain, packed = save_family(root / "plain", family), root / "packed"
    tensors = load_file(plain / "model.safetensors")
    stored: Tensors = {}
    for name, tensor in list(tensors.items()):
        path, _, last = name.rpartition(".")
        if last == "weight" and path.endswith("_proj"):
            parts, tensors[name] = layout.pack(tensor)
            stored |= {f"{path}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            stored[name] = tensor
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(plain, packed)
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = dict(layout.config)
    (packed / "config.json").write_text(json.dumps(config))
    return packed, plain


def _rounded(weight: Tensor, bits: int, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [out, in], zeros and scales [out, groups], of asymmetric rounding; scales as in fp16."""
    count = int(groups.max()) + 1
    columns = [weight[:, groups == group] for group in range(count)]
    low = torch.stack([part.amin(1).clamp(max=0) for part in columns], 1)
    high = torch.stack([part.amax(1).clamp(min=0) for part in columns], 1)
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = torch.round(-low / scales).clamp(1, 2**bits - 1)
    q = torch.round(weight / scales[:, groups] + zeros[:, groups]).clamp(0, 2**bits - 1)
    return q.int(), zeros.int(), scales


def _words(values: Tensor, bits: int, order: tuple[int, ...]) -> Tensor:
    """int32 [rows, columns * bits / 32]: field i of a word is the column `order[i]` of its own."""
    fields = len(order)
    words = torch.zeros(len(values), values.shape[1] // fields, dtype=torch.int64)
    for place, column in enumerate(order):
        words |= values[:, column::fields].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def awq(group: int = GROUP) -> Layout:
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(weight: Tensor) -> tuple[Tensors, Tensor]:
        groups = torch.arange(weight.shape[1]) // group
        q, zeros, scales = _rounded(weight, 4, groups)
        parts = {
            "qweight": _words(q.T, 4, order),
            "qzeros": _words(zeros.T, 4, order),
            "scales": scales.T.half(),
        }
        return parts, (q - zeros[:, groups]) * scales[:, groups]

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return Layout({**config, "zero_point": True}, pack)


def gptq(bits: int, *, is_ordered: bool = True, form: str = "gptq", group: int = GROUP) -> Layout:
    """is_ordered: inputs are in the order of their groups; else `g_idx` alone says."""
    order = tuple(range(32 // bits))

    def pack(weight: Tensor) -> tuple[Tensors, Tensor]:
        size = weight.shape[1] if group == -1 else group
        groups = torch.arange(weight.shape[1]) // size
        if not is_ordered:
            groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(3))]
        q, zeros, scales = _rounded(weight, bits, groups)
        kept = zeros - 1 if form == "gptq" else zeros
        parts = {
            "qweight": _words(q, bits, order).T,
            "qzeros": _words(kept.T, bits, order),
            "scales": scales.T.half(),
        }
        if not is_ordered:
            parts["g_idx"] = groups.int()
        return parts, (q - zeros[:, groups]) * scales[:, groups]

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form}
    return Layout({**config, "desc_act": not is_ordered, "sym": False}, pack)


def compressed(form: str, **weights: Any) -> Layout:
    """Written by compressed-tensors itself, of `weights`' arguments."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor: Any = BaseCompressor.get_value_from_registry(form)

    def pack(weight: Tensor) -> tuple[Tensors, Tensor]:
        scale, zeros = _scale_of(weight, weights)
        given = {"weight": weight, "weight_scale": scale}
        if zeros is not None:
            given["weight_zero_point"] = zeros
        parts = compressor.compress(given, scheme)
        return dict(parts), compressor.decompress(dict(parts), scheme)["weight"].float()

    group = {"targets": ["Linear"], "weights": weights}
    config = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return Layout({**config, "config_groups": {"group_0": group}}, pack)


def _scale_of(weight: Tensor, weights: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    size = weights.get("group_size") or weight.shape[1]
    parts = weight.view(len(weight), -1, size)
    if weights["type"] == "float":
        scale = parts.abs().amax(2) / 448
        return (scale.max().view(1) if weights["strategy"] == "tensor" else scale), None
    top = 2 ** (weights["num_bits"] - 1)
    if weights["symmetric"]:
        return parts.abs().amax(2) / (top - 1), None
    low, high = parts.amin(2), parts.amax(2)
    scale = (high - low) / (2 * top - 1)
    return scale, torch.round(-top - low / scale).clamp(-top, top - 1).to(torch.int8)


def fp8(block: tuple[int, int]) -> Layout:
    def pack(weight: Tensor) -> tuple[Tensors, Tensor]:
        rows, columns = (
            torch.arange(size) // side for size, side in zip(weight.shape, block, strict=True)
        )
        scale = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1)
        for row, column in ((r, c) for r in range(len(scale)) for c in range(scale.shape[1])):
            scale[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
        spread = scale[rows][:, columns]
        values = (weight / spread).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale_inv": scale}, values.float() * spread

    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    return Layout({**config, "activation_scheme": "dynamic"}, pack)


LAYOUTS = {
    "awq": awq(),
    "awq, one group": awq(64),
    "gptq": gptq(4),
    "gptq, 8 bits": gptq(8),
    "gptq, one group": gptq(4, group=-1),
    "gptq v2": gptq(4, form="gptq_v2"),
    "gptq, inputs in another order": gptq(4, is_ordered=False),
    "packed, 4 bits": compressed(
        "pack-quantized", num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP
    ),
    "packed, 4 bits with zeros": compressed(
        "pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group", group_size=16
    ),
    "packed, 8 bits": compressed(
        "pack-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"
    ),
    "int8": compressed("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel"),
    "float8": compressed(
        "float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"
    ),
    "float8, one scale": compressed(
        "float-quantized", num_bits=8, type="float", symmetric=True, strategy="tensor"
    ),
    "fp8 in blocks": fp8((32, 16)),
    "fp8 in blocks, the last cut": fp8((48, 48)),
}
