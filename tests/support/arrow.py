"""What arrow computes, by PEFT and by its equation: full decompositions, token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig, create_arrow_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.tiny import make_lora_folder

_TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """One adapter at one layer: a [rank, in], b [out, rank]."""

    a: Tensor
    b: Tensor
    scale: float

    @cached_property
    def direction(self) -> Tensor:
        """The top right-singular vector of B A = (B R^T) Q^T, where A^T = Q R."""
        q, r = torch.linalg.qr(self.a.double().T)
        inner = torch.linalg.svd(self.b.double() @ r.T, full_matrices=False).Vh
        direction: Tensor = q @ inner[0]
        return direction.float()


def arrow_weights(x: Tensor, directions: Tensor, top_k: int, temperature: float) -> Tensor:
    """One token's weights: x [in], directions [adapters, in] -> [adapters]."""
    scores = (directions @ x).abs()
    weights = torch.zeros_like(scores)
    best = scores.topk(min(top_k, len(scores)))
    weights[best.indices] = torch.softmax(best.values / temperature, 0)
    return weights


def arrow_delta(x: Tensor, experts: Sequence[Factors], top_k: int, temperature: float) -> Tensor:
    """What the experts add to a linear layer's output: x [tokens, in] -> [tokens, out]."""
    directions = torch.stack([expert.direction for expert in experts])
    rows = []
    for token in x:
        weights = arrow_weights(token, directions, top_k, temperature)
        terms = [
            weight * expert.scale * (expert.b @ (expert.a @ token))
            for weight, expert in zip(weights, experts, strict=True)
        ]
        rows.append(torch.stack(terms).sum(0))
    return torch.stack(rows)


def with_arrow(
    base: PreTrainedModel, folders: Sequence[Path], top_k: int, temperature: float
) -> PreTrainedModel:
    """`base`, which is changed, with the equation behind each linear layer that adapters touch."""
    by_module: dict[str, list[Factors]] = {}
    for folder in folders:
        for module, factors in _read(folder).items():
            by_module.setdefault(module, []).append(factors)
    for module, experts in by_module.items():
        base.get_submodule(module).register_forward_hook(_hook(experts, top_k, temperature))
    return base


def peft_arrow(
    base: PreTrainedModel, folders: Sequence[Path], top_k: int, temperature: float
) -> Any:
    """PEFT's arrow over `base`, which is changed."""
    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=0)
    return create_arrow_model(base, [str(folder) for folder in folders], config).eval()


def make_gapped_folder(directory: Path, **options: Any) -> Path:
    """A LoRA folder whose B A have singular values that PEFT's fifteen iterations tell apart."""
    make_lora_folder(directory, **options)
    tensors = load_file(directory / _TENSORS)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensors[name] = (tensor * 0.2 ** torch.arange(tensor.shape[1])).contiguous()
    save_file(tensors, directory / _TENSORS, {"format": "pt"})
    return directory


def _read(folder: Path) -> dict[str, Factors]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / _TENSORS)
    suffix = ".lora_A.weight"
    return {
        name.removeprefix(_PREFIX).removesuffix(suffix): Factors(
            tensor.float(), tensors[name.replace("lora_A", "lora_B")].float(), scale
        )
        for name, tensor in tensors.items()
        if name.endswith(suffix)
    }


def _hook(experts: Sequence[Factors], top_k: int, temperature: float) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        return output + arrow_delta(x, experts, top_k, temperature).view_as(output)

    return add
