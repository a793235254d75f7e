"""A tiny adapter kept as copies, and what PyTorch alone makes of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_to_json
from adapters_store.types import AdapterManifest
from router_engine.experts.variants import Side
from router_engine.model.tiny import tiny_model

DOWN = (0.5, 0.3, 0.2)  # the average's weights of three copies of A
UP = (0.75, 0.25)  # and of two of B
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
_RANK = 2
_SCALE = 2.0

Weights = Callable[[LoraExpertSpec, Side], Sequence[float]]  # one a copy


@dataclass(frozen=True, slots=True)
class CopiesAdapter:
    """The adapter's files, and its experts with their copies A [M, r, in] and B [N, out, r]."""

    folder: Path
    manifest: AdapterManifest
    tensors: dict[str, Tensor]

    def model(self, weights: Weights) -> PreTrainedModel:
        """The tiny model with W + scale (sum_n u_n B_n) (sum_m d_m A_m) in place of each W."""
        model = tiny_model()
        for expert in self.manifest.lora_experts:
            down = torch.tensor(weights(expert, "down"))
            up = torch.tensor(weights(expert, "up"))
            a = torch.einsum("m,mri->ri", down, self.tensors[expert.tensor_a])
            b = torch.einsum("n,nor->or", up, self.tensors[expert.tensor_b])
            with torch.no_grad():
                model.get_submodule(expert.module).weight += expert.scale * b @ a
        return model


def average(expert: LoraExpertSpec, side: Side) -> Sequence[float]:
    """The weights of the manifest."""
    assert expert.copies is not None
    return expert.copies.down if side == "down" else expert.copies.up


def make_copies(folder: Path, *, seed: int = 0, equal: bool = False) -> CopiesAdapter:
    """A folder in the native format; `equal`: all copies of a side are the same."""
    generator = torch.Generator().manual_seed(seed)
    experts: list[LoraExpertSpec] = []
    tensors: dict[str, Tensor] = {}
    model = tiny_model()
    for layer in range(model.config.num_hidden_layers):
        for target in TARGETS:
            module = f"model.layers.{layer}.{target}"
            out_features, in_features = model.get_submodule(module).weight.shape
            a = torch.randn(len(DOWN), _RANK, in_features, generator=generator) / in_features**0.5
            b = torch.randn(len(UP), out_features, _RANK, generator=generator) * 0.5
            for key, value in ((f"{module}.a", a), (f"{module}.b", b)):
                tensors[key] = value[:1].expand_as(value).contiguous() if equal else value
            experts.append(
                LoraExpertSpec(
                    module=module,
                    rank=_RANK,
                    scale=_SCALE,
                    in_features=in_features,
                    out_features=out_features,
                    tensor_a=f"{module}.a",
                    tensor_b=f"{module}.b",
                    copies=Copies(DOWN, UP),
                )
            )
    manifest = AdapterManifest("adaptermix", tuple(experts))
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_bytes(manifest_to_json(manifest))
    save_file(tensors, folder / TENSOR_FILE)
    return CopiesAdapter(folder, manifest, tensors)
