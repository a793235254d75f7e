"""The router of a layer as a module that trains: gates from what the layer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from adapters_store.expert_kinds.gating import GatingNetworkSpec


@dataclass(frozen=True, slots=True)
class GatingTraining:
    """Settings of routers under training, which the manifest doesn't hold.

    threshold: `frozen`, as in the published code: it stands in a comparison only, so no gradient
    reaches its net, which stays as it was drawn. `straight_through` is ours: forward the same hard
    mask, backward that of sigmoid((g - theta) / temperature).
    """

    threshold: Literal["frozen", "straight_through"] = "frozen"
    temperature: float = 0.1


class GatingNetwork(nn.Module):
    """Gates of every token, as `GatingNetworkSpec` says; weights as torch begins a linear layer."""

    def __init__(self, spec: GatingNetworkSpec, training: GatingTraining) -> None:
        super().__init__()
        self.spec = spec
        self.pooled = spec.scope == "prompt"
        self._how = training
        outputs, features, hidden = spec.outputs, spec.features, spec.hidden
        shapes = (
            {"": (features, outputs)}
            if spec.kind == "linear"
            else {
                ".w1": (features, hidden),
                ".w2": (hidden, outputs),
                ".w3": (features, hidden),
            }
        )
        self._parts = {
            f"{spec.prefix}{suffix}": nn.Linear(*shape) for suffix, shape in shapes.items()
        }
        net = None if spec.threshold is None else spec.threshold.prefix
        if net is not None:
            self._parts[net] = nn.Linear(features, 1)
            self._parts[net].requires_grad_(training.threshold == "straight_through")
        self.linears = nn.ModuleList(self._parts.values())

    def forward(self, v: Tensor, prompt_mask: Tensor | None) -> Tensor:
        """v [rows, tokens, features] of any dtype to gates [rows, tokens or 1, outputs] in fp32.

        prompt_mask [rows, tokens], 1 where the prompt is, of routers of whole prompts only.
        """
        v = v.float()
        if self.pooled:
            assert prompt_mask is not None
            weights = prompt_mask[..., None] / prompt_mask.sum(dim=1)[:, None, None]
            v = (v * weights).sum(dim=1, keepdim=True)
        z = self._scores(v)
        if self.spec.activation == "softmax":
            return _softmax_of_highest(z, self.spec.top_k or self.spec.outputs)
        gates = z.sigmoid()
        return gates if self.spec.threshold is None else gates * self._mask(v, gates)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the spec."""
        return {
            f"{name}.{side}": getattr(part, side)
            for name, part in self._parts.items()
            for side in ("weight", "bias")
        }

    def _scores(self, v: Tensor) -> Tensor:
        prefix = self.spec.prefix
        if self.spec.kind == "linear":
            scores: Tensor = self._parts[prefix](v)
            return scores
        w1, w2, w3 = (self._parts[f"{prefix}.{name}"] for name in ("w1", "w2", "w3"))
        gated: Tensor = w2(silu(w1(v)) * w3(v))
        return gated

    def _mask(self, v: Tensor, gates: Tensor) -> Tensor:
        """1 where a gate reaches the threshold, 0 elsewhere."""
        threshold = self.spec.threshold
        assert threshold is not None
        theta: Tensor | float = threshold.maximum
        if threshold.prefix is not None:
            theta = theta * self._parts[threshold.prefix](v).sigmoid()
        hard = (gates >= theta).float()
        if self._how.threshold == "frozen":
            return hard
        slope = ((gates - theta) / self._how.temperature).sigmoid()
        return hard + (slope - slope.detach())


def _softmax_of_highest(z: Tensor, count: int) -> Tensor:
    """Softmax over the `count` highest of the last dimension, 0 elsewhere."""
    highest = z.topk(count, dim=-1).indices
    left = torch.full_like(z, -torch.inf).scatter(-1, highest, z.gather(-1, highest))
    return left.softmax(dim=-1)
