"""AdaMix on LoRA: copies in place of every A and B of a PEFT model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from adaptermix.training.adamix.copies import CopiedLinear
from adaptermix.training.adamix.draws import Draws
from adaptermix.training.card import Described, describe_lora
from adaptermix.training.lora_model import lora_model, save_lora
from adaptermix.training.native import save_native
from adaptermix.training.settings import AdamixSettings, RunSettings
from adapters_store.expert_kinds.base import Copies as Kept
from adapters_store.expert_kinds.lora import LoraExpertSpec

_ADAPTER = "default"  # as PEFT calls the only one
_PEFT = "base_model.model."  # what PEFT puts before the names of modules


class Pairs:
    """The base under LoRA pairs whose A and B are copies under `draws`."""

    def __init__(self, settings: RunSettings, adamix: AdamixSettings, draws: Draws) -> None:
        self.model = lora_model(settings)
        self._settings = settings
        make_copies(self.model, adamix, draws)

    def merge(self) -> None:
        """Put the mean of its copies in place of each A and B: a plain LoRA adapter is left."""
        merge_copies(self.model)

    def save(self, out: Path) -> None:
        """PEFT's folder of the merged adapter."""
        save_lora(self.model, out, self._settings)

    def save_copies(self, out: Path) -> None:
        """The native folder of the copies, before they are merged."""
        experts, tensors = [], {}
        for path, layer in _named_layers(self.model):
            down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
            keys = (f"{path}.lora_a", f"{path}.lora_b")
            for key, side in zip(keys, (down, up), strict=True):
                tensors[key] = torch.stack(list(side.weights))
            experts.append(
                LoraExpertSpec(
                    module=path,
                    rank=layer.r[_ADAPTER],
                    scale=layer.scaling[_ADAPTER],
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    tensor_a=keys[0],
                    tensor_b=keys[1],
                    copies=Kept(down.shares(), up.shares()),
                )
            )
        save_native(out, self._settings, experts, tensors)

    @staticmethod
    def describe(settings: RunSettings) -> Described:
        """The lines of the card."""
        return describe_lora(settings)


def make_copies(model: Any, settings: AdamixSettings, draws: Draws) -> None:
    """Put copies in place of every A and B of a PEFT model, one only on the shared side."""
    for _, layer in _named_layers(model):
        for side, held in (("down", layer.lora_A), ("up", layer.lora_B)):
            first = held[_ADAPTER].weight.detach()
            weights = [first] + [
                first.clone() for _ in range(settings.copies - 1) if settings.share != side
            ]
            if side == "down" and settings.init == "independent":
                for weight in weights[1:]:
                    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as PEFT's own A
            held[_ADAPTER] = CopiedLinear(weights, draws)


def merge_copies(model: Any) -> None:
    """Put the mean of its copies in place of each A and B: a plain LoRA adapter is left."""
    for _, layer in _named_layers(model):
        for held in (layer.lora_A, layer.lora_B):
            held[_ADAPTER] = held[_ADAPTER].merged()


def _named_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """LoRA layers by their path in the base."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(_PEFT), module
