"""The experts as modules that train: the equations of their specs, in fp32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from router_engine.kernels.reference.experts import ACTIVATIONS


class TrainedLora(nn.Module):
    """g scale B A dropout(x); A Kaiming-uniform, B zero, so that it begins as nothing."""

    def __init__(self, spec: LoraExpertSpec, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self._dropout = dropout
        self.a = nn.Parameter(torch.empty(spec.rank, spec.in_features))
        self.b = nn.Parameter(torch.zeros(spec.out_features, spec.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [.., in] of any dtype, gate [.., 1] to [.., out] in fp32."""
        inputs = dropout(x.float(), self._dropout, training=self.training)
        return linear(linear(inputs, self.a) * (gate * self.spec.scale), self.b)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the spec."""
        return {self.spec.tensor_a: self.a, self.spec.tensor_b: self.b}


class TrainedBottleneck(nn.Module):
    """g scale (U act(D v + d) + u); tiny weights, biases zero: it begins as nearly nothing."""

    def __init__(self, spec: BottleneckExpertSpec) -> None:
        super().__init__()
        self.spec = spec
        self._act = ACTIVATIONS[spec.activation]
        self.down = nn.Linear(spec.features, spec.size, bias=spec.tensor_down_bias is not None)
        self.up = nn.Linear(spec.size, spec.features, bias=spec.tensor_up_bias is not None)
        for side in (self.down, self.up):
            nn.init.xavier_uniform_(side.weight, gain=1e-4)
            if side.bias is not None:
                nn.init.zeros_(side.bias)

    def forward(self, v: Tensor, gate: Tensor) -> Tensor:
        """v [.., features] of any dtype, gate [.., 1] to [.., features] in fp32."""
        out: Tensor = self.up(self._act(self.down(v.float())))
        return gate * self.spec.scale * out

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the spec."""
        spec = self.spec
        named = {
            spec.tensor_down: self.down.weight,
            spec.tensor_up: self.up.weight,
            spec.tensor_down_bias: self.down.bias,
            spec.tensor_up_bias: self.up.bias,
        }
        return {name: tensor for name, tensor in named.items() if name is not None}


class TrainedPrompt(nn.Module):
    """Learned keys and values with a softmax of their own; head gates zero: it begins as nothing.

    `attention` is the base's module, whose k_proj, v_proj and k_norm are read and not trained.
    """

    def __init__(self, spec: PromptExpertSpec, attention: Any) -> None:
        super().__init__()
        self.spec = spec
        self._base = (attention.k_proj, attention.v_proj, getattr(attention, "k_norm", None))
        self._head_dim = int(attention.head_dim)
        self.prompt = nn.Parameter(torch.randn(spec.length, spec.features))
        self.head_gates = nn.Parameter(torch.zeros(spec.heads))

    def forward(self, query: Tensor, gate: Tensor) -> Tensor:
        """query [rows, heads, tokens, head_dim] after its rotation, gate [rows, tokens, 1] to
        [rows, tokens, heads, head_dim] in fp32."""
        keys, values = self._keys_and_values()
        rows, _, tokens, head_dim = query.shape
        grouped = query.float().view(rows, keys.shape[1], -1, tokens, head_dim)
        scores = torch.einsum("bkgtd,lkd->bkgtl", grouped, keys) * head_dim**-0.5
        attended = torch.einsum("bkgtl,lkd->btkgd", scores.softmax(dim=-1), values).flatten(2, 3)
        return gate[..., None] * self.head_gates[:, None] * attended

    def _keys_and_values(self) -> tuple[Tensor, Tensor]:
        """[length, kv_heads, head_dim] each.

        By the weights and not by calling the modules, on which the LoRA experts hang.
        """
        k_proj, v_proj, k_norm = self._base
        keys, values = (
            self._through(layer).view(self.spec.length, -1, self._head_dim)
            for layer in (k_proj, v_proj)
        )
        return keys if k_norm is None else k_norm(keys), values

    def _through(self, layer: nn.Linear) -> Tensor:
        bias = None if layer.bias is None else layer.bias.float()
        return linear(self.prompt, layer.weight.float(), bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the spec."""
        return {self.spec.tensor_prompt: self.prompt, self.spec.tensor_head_gates: self.head_gates}


Expert = TrainedLora | TrainedBottleneck | TrainedPrompt
