"""Copies of one linear map, one of which is drawn each time (AdaMix, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from adaptermix.training.adamix.draws import Draws


class CopiedLinear(torch.nn.Module):
    """Stands for one linear map: y = W_i x + b_i, where i is drawn at each call.

    weights: [out, in] each. biases: [out] each, none for maps without. Outside of `Draws.random` it
    is the map of the means, y = (1/M sum_i W_i) x + 1/M sum_i b_i. A copy that isn't drawn takes no
    part in the graph, so its gradients stay None.
    """

    def __init__(
        self, weights: Sequence[Tensor], draws: Draws, biases: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self.biases = torch.nn.ParameterList(biases)
        self._draws = draws

    @property
    def weight(self) -> Tensor:
        """The mean of the copies [out, in]; PEFT asks for its dtype."""
        return torch.stack(list(self.weights)).mean(dim=0)

    @property
    def bias(self) -> Tensor | None:
        """The mean of the biases [out]."""
        return torch.stack(list(self.biases)).mean(dim=0) if len(self.biases) else None

    def forward(self, x: Tensor) -> Tensor:
        """[examples, tokens, in] to [examples, tokens, out]."""
        chosen = self._draws.choose(len(self.weights), x.shape)
        if chosen is None:
            return linear(x, self.weight, self.bias)
        if len(chosen) == 1:
            bias = self.biases[chosen[0]] if len(self.biases) else None
            return linear(x, self.weights[chosen[0]], bias)
        drawn = sorted(set(chosen))
        places = [drawn.index(index) for index in chosen]
        y = x @ torch.stack([self.weights[index] for index in drawn])[places].mT
        if not len(self.biases):
            return y
        return y + torch.stack([self.biases[index] for index in drawn])[places][:, None]

    def merged(self) -> torch.nn.Linear:
        """The map of the means as an ordinary layer."""
        weight, bias = self.weight.detach(), self.bias
        width_out, width_in = weight.shape
        layer = torch.nn.Linear(width_in, width_out, bias=bias is not None, device="meta")
        layer.weight = torch.nn.Parameter(weight)
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias.detach())
        return layer

    def shares(self) -> tuple[float, ...]:
        """The weight of each copy in the mean."""
        return (1 / len(self.weights),) * len(self.weights)
