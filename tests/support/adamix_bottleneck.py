"""AdaMix's bottlenecks on a tiny GPT-2, in the original's layout and with its forward in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.adamix_checkpoint import EXPERTS, HIDDEN
from tests.support.tiny import family_model

SIZE = 6


class SoupSide(nn.Module):
    """M copies of a linear layer, averaged by the softmax of their scores."""

    def __init__(self, copies: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.deepspeed_experts = nn.ModuleList(
            nn.Linear(in_features, out_features) for _ in range(copies)
        )
        self.expert_score_weight = nn.Parameter(torch.zeros(copies), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.expert_score_weight.softmax(0)
        experts = list(zip(weights, self.deepspeed_experts, strict=True))
        weight = torch.stack([w * expert.weight for w, expert in experts]).sum(0)
        bias = torch.stack([w * expert.bias for w, expert in experts]).sum(0)
        return functional.linear(x, weight, bias)


class ExpertSoup(nn.Module):
    """u -> u + B gelu(A u + a) + b, GELU in its tanh form."""

    def __init__(self, copies: tuple[int, int]) -> None:
        super().__init__()
        self.MoA_A = SoupSide(copies[0], HIDDEN, SIZE)
        self.MoA_B = SoupSide(copies[1], SIZE, HIDDEN)

    def forward(self, u: Tensor) -> Tensor:
        down = functional.gelu(self.MoA_A(u), approximate="tanh")
        out: Tensor = u + self.MoA_B(down)
        return out


def bottleneck_model(
    *, copies: tuple[int, int] = (EXPERTS, 1), scores: Sequence[float] | None = None
) -> Any:
    """The tiny GPT-2 with AdaMix's bottlenecks in every layer; `copies` of the ways down and up.

    `scores` are those of the way down.
    """
    model: Any = family_model("gpt2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for block in model.transformer.h:
            soup = ExpertSoup(copies)
            if scores is not None:
                soup.MoA_A.expert_score_weight.data.copy_(torch.tensor(scores))
            block.mlp.ExpertSoup = soup
            block.mlp.register_forward_hook(lambda mlp, _inputs, u: mlp.ExpertSoup(u))
    return model.eval()
