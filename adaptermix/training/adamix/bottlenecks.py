"""AdaMix on bottlenecks: one after each feed-forward module, its linear maps as copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu

from adaptermix.training.adamix.copies import CopiedLinear
from adaptermix.training.adamix.draws import Draws
from adaptermix.training.base import read_base, torch_device
from adaptermix.training.card import Described
from adaptermix.training.native import save_native
from adaptermix.training.settings import AdamixSettings, RunSettings
from adapters_store.expert_kinds.base import Copies as Kept
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from router_engine.model.probe import layers_of

Gelu = Literal["gelu", "gelu_tanh"]

_STD = 0.02  # of every initial weight, as GPT-2's and BERT's own
_ACTIVATIONS: dict[Gelu, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
}


class CopiedBottleneck(torch.nn.Module):
    """y = u + U gelu(D u + d) + e for the output u of a feed-forward module, [.., features].

    D [size, features], d [size], U [features, size] and e [features] are copies under `draws`.
    Source: Wang et al., "AdaMix" (2022), section 2; Houlsby et al. (2019).
    """

    def __init__(
        self, features: int, adamix: AdamixSettings, draws: Draws, activation: Gelu
    ) -> None:
        super().__init__()
        size = adamix.bottleneck_size
        downs, ups = (1 if adamix.share == side else adamix.copies for side in ("down", "up"))
        # copies, or one ordinary layer each once they are merged
        self.down = _copies(size, features, downs, draws)
        self.up = _copies(features, size, ups, draws)
        self.activation = activation

    def forward(self, u: Tensor) -> Tensor:
        """In fp32, back in the dtype of `u`."""
        inner = _ACTIVATIONS[self.activation](self.down(u.float()))
        y: Tensor = u + self.up(inner)
        return y.to(u.dtype)


class CopiedBottlenecks:
    """The frozen base with a bottleneck of copies, in fp32, after each feed-forward module."""

    def __init__(self, settings: RunSettings, adamix: AdamixSettings, draws: Draws) -> None:
        base = read_base(settings.base, settings.dtype, "cpu", settings.revision)
        self.model = base.requires_grad_(requires_grad=False)
        self._settings = settings
        activation: Gelu = "gelu_tanh" if base.config.model_type == "gpt2" else "gelu"
        self._held: dict[str, CopiedBottleneck] = {}
        path, layers = layers_of(base)
        for index, layer in enumerate(layers):
            bottleneck = CopiedBottleneck(base.config.hidden_size, adamix, draws, activation)
            _put_after(layer.mlp, bottleneck)
            self._held[f"{path}.{index}.mlp"] = bottleneck
        base.to(torch_device(settings.device))

    def merge(self) -> None:
        """Put the means in place of the copies."""
        for bottleneck in self._held.values():
            for name in ("down", "up"):
                setattr(bottleneck, name, getattr(bottleneck, name).merged())

    def save(self, out: Path) -> None:
        """The native folder of the merged adapter."""
        self._save(out, lambda side: (side.weight, side.bias), lambda bottleneck: None)

    def save_copies(self, out: Path) -> None:
        """The native folder of the copies, before they are merged."""
        self._save(
            out,
            lambda side: (torch.stack(list(side.weights)), torch.stack(list(side.biases))),
            lambda bottleneck: Kept(bottleneck.down.shares(), bottleneck.up.shares()),
        )

    @staticmethod
    def describe(adamix: AdamixSettings) -> Described:
        """The lines of the card."""
        text = f"size {adamix.bottleneck_size}, GELU, after each feed-forward module"
        return Described("bottleneck", "adaptermix", text)

    def _save(
        self,
        out: Path,
        tensors_of: Callable[[Any], tuple[Tensor, Tensor]],
        stored: Callable[[CopiedBottleneck], Kept | None],
    ) -> None:
        experts, tensors = [], {}
        for path, bottleneck in self._held.items():
            for name, side in (("down", bottleneck.down), ("up", bottleneck.up)):
                tensors[f"{path}.{name}.weight"], tensors[f"{path}.{name}.bias"] = tensors_of(side)
            size, features = tensors[f"{path}.down.weight"].shape[-2:]
            experts.append(
                BottleneckExpertSpec(
                    module=path,
                    placement="serial",
                    size=size,
                    features=features,
                    activation=bottleneck.activation,
                    tensor_down=f"{path}.down.weight",
                    tensor_up=f"{path}.up.weight",
                    tensor_down_bias=f"{path}.down.bias",
                    tensor_up_bias=f"{path}.up.bias",
                    copies=stored(bottleneck),
                )
            )
        save_native(out, self._settings, experts, tensors)


def _copies(out_features: int, in_features: int, count: int, draws: Draws) -> CopiedLinear:
    weights = [torch.randn(out_features, in_features) * _STD for _ in range(count)]
    return CopiedLinear(weights, draws, [torch.zeros(out_features) for _ in range(count)])


def _put_after(module: Any, bottleneck: CopiedBottleneck) -> None:
    """Let what `module` puts out go through `bottleneck`, which becomes a part of it."""
    module.adamix = bottleneck
    module.register_forward_hook(lambda module, inputs, output: module.adamix(output))
