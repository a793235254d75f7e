"""AdaMix's LoRA on a tiny GPT-2, in the original's layout and with its forward in plain torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.tiny import family_model

HIDDEN, LAYERS, RANK, EXPERTS, ALPHA = 64, 2, 4, 8, 32.0
_KEPT = ("lora_", "expert_score_weight", "deepspeed_experts")  # what adapter-only files hold


class AdamixAttention(nn.Module):
    """GPT-2's c_attn with M copies of LoRA on q and v, averaged as AdaMix does when it serves.

    A_e [2r, d] and B_e [2d, r]: the first half of the rows serves q, the second v. B is the kernel
    of a 1x1 convolution in two groups; k has no LoRA. The scale is alpha / r.
    """

    def __init__(self, base: Any, *, alpha: float, copies: tuple[int, int], rank: int) -> None:
        super().__init__()
        hidden = int(base.weight.shape[0])
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        self.experts_lora_A = nn.ParameterList(
            nn.Parameter(torch.randn(2 * rank, hidden) * hidden**-0.5) for _ in range(copies[0])
        )
        self.experts_lora_B = nn.ParameterList(
            nn.Parameter(torch.randn(2 * hidden, rank) * 0.1) for _ in range(copies[1])
        )
        self.lora_expert_score_weight = nn.Parameter(torch.zeros(EXPERTS), requires_grad=False)

    def side(self, experts: nn.ParameterList) -> Tensor:
        """sum_e softmax(score)_e P_e, or the only copy."""
        stacked = torch.stack(list(experts))
        if len(stacked) == 1:
            return stacked[0]
        return torch.einsum("e,eij->ij", self.lora_expert_score_weight.softmax(0), stacked)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> q, k, v [batch, tokens, 3d]."""
        a, b = self.side(self.experts_lora_A), self.side(self.experts_lora_B)
        rows = functional.linear(x, a).transpose(1, 2)
        q, v = functional.conv1d(rows, b[:, :, None], groups=2).transpose(1, 2).chunk(2, dim=-1)
        base: Tensor = x @ self.weight + self.bias
        return base + self.scale * torch.cat([q, torch.zeros_like(q), v], dim=-1)

    def keep_shared(self) -> None:
        """What the original's first evaluation does: a shared side gets a second name."""
        for side in "AB":
            experts = getattr(self, f"experts_lora_{side}")
            if len(experts) == 1:
                setattr(self, f"lora_{side}_w", experts[0])


def adamix_model(
    *,
    copies: tuple[int, int] = (EXPERTS, 1),
    alpha: float = ALPHA,
    rank: int = RANK,
    scores: Sequence[float] | None = None,
    evaluated: bool = False,
    seed: int = 3,
) -> Any:
    """The tiny GPT-2 with AdaMix's LoRA in every layer; `copies` counts those of A and of B."""
    model: Any = family_model("gpt2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.transformer.h:
            layer = AdamixAttention(block.attn.c_attn, alpha=alpha, copies=copies, rank=rank)
            if scores is not None:
                layer.lora_expert_score_weight.copy_(torch.tensor(scores))
            if evaluated:
                layer.keep_shared()
            block.attn.c_attn = layer
    return model.eval()


def state_of(
    model: Any, *, full: bool = False, prefix: str = "module."
) -> OrderedDict[str, Tensor]:
    """What the original's trainer saves of it: all weights, or the LoRA alone."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in model.state_dict().items():
        named = name.replace("lm_head.weight", "lm_head.decoder.weight")
        if full or any(part in named for part in _KEPT):
            state[prefix + named] = tensor.detach().clone()
    if full:
        for layer in range(len(model.transformer.h)):
            mask = torch.ones(32, 32).tril().view(1, 1, 32, 32)
            state[f"{prefix}transformer.h.{layer}.attn.bias"] = mask
    return state


def save_checkpoint(path: Path, state: OrderedDict[str, Tensor]) -> Path:
    """The file as the trainer writes it."""
    torch.save({"model_state_dict": state}, path)
    return path
