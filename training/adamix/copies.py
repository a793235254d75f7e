"""Copies of the A and B of a LoRA adapter, one of which is drawn each time (AdaMix, section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear

from training.adamix.draws import Draws
from training.settings import AdamixSettings

_ADAPTER = "default"  # as PEFT calls the only one


class Copies(torch.nn.Module):
    """Stands for one linear map without bias: y = W_i x, where i is drawn at each call.

    weights: [out, in] each. Outside of `Draws.random` it is their mean, y = 1/M sum_i W_i x.
    A copy that isn't drawn takes no part in the graph, so its gradient stays None.
    """

    def __init__(self, weights: list[Tensor], draws: Draws) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self._draws = draws

    @property
    def weight(self) -> Tensor:
        """The mean of the copies [out, in]; PEFT asks for its dtype."""
        return torch.stack(list(self.weights)).mean(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """[examples, tokens, in] to [examples, tokens, out]."""
        chosen = self._draws.choose(len(self.weights), x.shape)
        if chosen is None:
            return linear(x, self.weight)
        if len(chosen) == 1:
            return linear(x, self.weights[chosen[0]])
        drawn = sorted(set(chosen))
        each = torch.stack([self.weights[index] for index in drawn])
        return x @ each[[drawn.index(index) for index in chosen]].mT


def make_copies(model: Any, settings: AdamixSettings, draws: Draws) -> None:
    """Put copies in place of every A and B of a PEFT model, one only on the shared side."""
    for layer in _lora_layers(model):
        for side, held in (("down", layer.lora_A), ("up", layer.lora_B)):
            first = held[_ADAPTER].weight.detach()
            weights = [first] + [
                first.clone() for _ in range(settings.copies - 1) if settings.share != side
            ]
            if side == "down" and settings.init == "independent":
                for weight in weights[1:]:
                    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as PEFT's own A
            held[_ADAPTER] = Copies(weights, draws)


def merge_copies(model: Any) -> None:
    """Put the mean of its copies in place of each A and B: a plain LoRA adapter is left."""
    for layer in _lora_layers(model):
        for held in (layer.lora_A, layer.lora_B):
            mean = held[_ADAPTER].weight.detach()
            width_out, width_in = mean.shape
            merged = torch.nn.Linear(width_in, width_out, bias=False, device="meta")
            merged.weight = torch.nn.Parameter(mean)
            held[_ADAPTER] = merged


def copies_of(model: Any) -> dict[str, Tensor]:
    """Every copy under PEFT's name of the tensor, its number before the last part."""
    return {
        f"{name.removesuffix(_ADAPTER)}{index}.weight": weight.detach().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, Copies)
        for index, weight in enumerate(module.weights)
    }


def _lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
