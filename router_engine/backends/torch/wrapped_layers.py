"""Puts the expert hooks into a transformers model.

Every linear layer becomes a MixtureLinear. A layer's first norm and its feed-forward module stay as
they are and tell the experts of what they read and put out; attention does so in
`attention_function`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from router_engine.backends.torch.attention_function import install_attention
from router_engine.experts.step import StepExperts
from router_engine.model.layout import shape_of
from router_engine.model.quantized import Int8Linear

_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


class MixtureLinear(nn.Module):
    """A base linear layer, and after it the experts of the step: y = W x + mixture(x).

    Holds nothing of its own: the base layer keeps its weight, the experts keep theirs.
    """

    def __init__(self, base: nn.Module, path: str, experts: StepExperts) -> None:
        super().__init__()
        self.base = base
        self.path = path
        self.shape = shape_of(base)
        self._experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        y: Tensor = self.base(x)
        return self._experts.apply(self.path, x, y)

    @property
    def weight(self) -> nn.Parameter:
        """The base parameter, laid out as the base layer stores it. Int8Linear has none."""
        parameter = self.base.weight
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored [in, out], as GPT-2's Conv1D does."""
        return isinstance(self.base, Conv1D)


def prepare_model(model: PreTrainedModel, experts: StepExperts) -> dict[str, MixtureLinear]:
    """Put paged attention and the experts' hooks in; returns the linear layers by path."""
    install_attention(model)
    linears = wrap_linears(model, experts)
    hook_layers(model, experts)
    return linears


def wrap_linears(model: nn.Module, experts: StepExperts) -> dict[str, MixtureLinear]:
    """Replace every linear layer in place; returns them by path."""
    linears: list[tuple[str, nn.Module]] = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | Int8Linear)
    ]
    wrapped: dict[str, MixtureLinear] = {}
    for path, module in linears:
        parent_path, _, name = path.rpartition(".")
        parent: Any = model.get_submodule(parent_path)
        wrapped[path] = MixtureLinear(module, path, experts)
        setattr(parent, name, wrapped[path])
    return wrapped


def hook_layers(model: nn.Module, experts: StepExperts) -> None:
    """Let the experts of `experts.blocks` see the first norm and the feed-forward of each layer."""
    for index, block in enumerate(experts.blocks):
        layer: Any = model.get_submodule(block.path)
        norm = layer.ln_1 if hasattr(layer, "ln_1") else layer.input_layernorm  # GPT-2, the others
        norm.register_forward_hook(_routing(index, experts))
        feed_forward = model.get_submodule(block.feed_forward)
        feed_forward.register_forward_hook(_feeding(block.feed_forward, experts))


def _routing(layer: int, experts: StepExperts) -> _Hook:
    def route(_: nn.Module, args: tuple[Tensor, ...], normed: Tensor) -> None:
        experts.route(layer, args[0], normed)

    return route


def _feeding(path: str, experts: StepExperts) -> _Hook:
    def feed(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return experts.feed_forward(path, args[0], output)

    return feed
