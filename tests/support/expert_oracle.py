"""Every kind of expert in plain torch, by its equation, on a transformers model without any cache.

Nothing of the engine is used: what an adapter adds is computed expert by expert from its specs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from router_engine.model.quantized import Int8Linear
from tests.support.expert_adapters import FolderFiles

ATTENTION = "expert_oracle"
ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: (
        0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
    ),
    "relu": lambda z: z.clamp(min=0),
}


def router_gates(spec: GatingNetworkSpec, tensors: dict[str, Tensor], v: Tensor) -> Tensor:
    """g [tokens, outputs] of v [tokens, features], as `GatingNetworkSpec` says."""

    def affine(prefix: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{prefix}.weight"].T + tensors[f"{prefix}.bias"]

    if spec.kind == "linear":
        z = affine(spec.prefix, v)
    else:
        gate, up = affine(f"{spec.prefix}.w1", v), affine(f"{spec.prefix}.w3", v)
        z = affine(f"{spec.prefix}.w2", ACT["silu"](gate) * up)
    if spec.activation == "softmax":
        kept = torch.zeros_like(z)
        for token, row in enumerate(z):
            best = sorted(range(len(row)), key=lambda i: -float(row[i]))[: spec.top_k]
            kept[token, best] = torch.softmax(row[best], 0)
        return kept
    g = 1 / (1 + torch.exp(-z))
    if spec.threshold is not None:
        theta = torch.tensor(spec.threshold.maximum)
        if spec.threshold.prefix is not None:
            theta = theta / (1 + torch.exp(-affine(spec.threshold.prefix, v)))
        g = g * (g >= theta)
    return g


def prompt_attention(query: Tensor, keys: Tensor, values: Tensor, head_gates: Tensor) -> Tensor:
    """query [heads, tokens, dim], keys and values [length, kv heads, dim] -> as query."""
    outputs = []
    for head, q in enumerate(query):
        kv = head * keys.shape[1] // len(query)
        shares = torch.softmax(q @ keys[:, kv].T / q.shape[-1] ** 0.5, -1)
        outputs.append(head_gates[head] * shares @ values[:, kv])
    return torch.stack(outputs)


class OracleAdapter:
    """One adapter in a model: its gates as they are found, layer by layer.

    prompt_length: of how many tokens the gates of a whole prompt are.
    """

    def __init__(self, folder: Path, weight: float, prompt_length: int) -> None:
        files = FolderFiles.of(folder)
        self.manifest = files.manifest
        self.tensors: dict[str, Tensor] = {
            key: each.float() for key, each in load_file(files.tensors).items()
        }
        self.weight = weight
        self.prompt_length = prompt_length
        self.gates: dict[str, Tensor] = {}  # by layer

    def side(self, expert: LoraExpertSpec | BottleneckExpertSpec, key: str, side: str) -> Tensor:
        tensor = self.tensors[key]
        if expert.copies is None:
            return tensor
        weights = torch.tensor(getattr(expert.copies, side))
        average: Tensor = torch.einsum("m,m...->...", weights, tensor)
        return average

    def times(self, expert: ExpertSpec) -> Tensor | float:
        """w g [tokens, 1]."""
        if expert.gate is None:
            return self.weight
        (layer,) = (path for path in self.gates if expert.module.startswith(f"{path}."))
        return self.weight * self.gates[layer][:, expert.gate, None]

    def lora(self, expert: LoraExpertSpec, x: Tensor) -> Tensor:
        a, b = self.side(expert, expert.tensor_a, "down"), self.side(expert, expert.tensor_b, "up")
        return self.times(expert) * expert.scale * (x @ a.T @ b.T)

    def bottleneck(self, expert: BottleneckExpertSpec, v: Tensor) -> Tensor:
        z = v @ self.side(expert, expert.tensor_down, "down").T
        if expert.tensor_down_bias is not None:
            z = z + self.side(expert, expert.tensor_down_bias, "down")
        out = ACT[expert.activation](z) @ self.side(expert, expert.tensor_up, "up").T
        if expert.tensor_up_bias is not None:
            out = out + self.side(expert, expert.tensor_up_bias, "up")
        return self.times(expert) * expert.scale * out

    def prompt(self, expert: PromptExpertSpec, attention: Any, query: Tensor) -> Tensor:
        """query [heads, tokens, dim] -> what is added to what it attends to, of the same shape."""
        p = self.tensors[expert.tensor_prompt]
        keys, values = (
            functional.linear(p, _weight(linear), linear.bias).view(len(p), -1, query.shape[-1])
            for linear in (attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        head_gates = self.tensors[expert.tensor_head_gates]
        return self.times(expert) * prompt_attention(query, keys, values, head_gates)


def _weight(linear: Any) -> Tensor:
    """A layer's weight [out, in], as the layer computes with it."""
    if isinstance(linear, Int8Linear):
        return linear.values * linear.scale[:, None]
    weight: Tensor = linear.weight
    return weight


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: object, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention [1, heads, tokens, dim] by hand, and the prompts that `module` has."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT * options["scaling"]
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    output = torch.softmax(scores.masked_fill(later, -torch.inf), -1) @ value
    for adapter, expert in getattr(module, "prompts", ()):
        output = output + adapter.prompt(expert, module, query[0])
    return output.transpose(1, 2), None


def with_experts(
    model: PreTrainedModel, mixture: Sequence[tuple[Path, float]], prompt_length: int = 0
) -> PreTrainedModel:
    """`model`, which is changed, under native folders with these weights.

    prompt_length: in tokens, for routers of whole prompts.
    """
    put_experts(model, mixture, prompt_length)
    return model


def put_experts(
    model: PreTrainedModel, mixture: Sequence[tuple[Path, float]], prompt_length: int = 0
) -> list[OracleAdapter]:
    """As `with_experts`; returns the adapters, which hold the gates of the last pass."""
    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)
    adapters = [OracleAdapter(folder, weight, prompt_length) for folder, weight in mixture]
    for adapter in adapters:
        for router in adapter.manifest.routers:
            _hook_router(model, adapter, router)
        for expert in adapter.manifest.experts:
            module: Any = model.get_submodule(expert.module)
            if isinstance(expert, LoraExpertSpec):
                module.register_forward_hook(_lora_hook(adapter, expert))
            elif isinstance(expert, PromptExpertSpec):
                module.prompts = [*getattr(module, "prompts", ()), (adapter, expert)]
    _hook_feed_forwards(model, adapters)
    return adapters


def _hook_router(model: nn.Module, adapter: OracleAdapter, spec: GatingNetworkSpec) -> None:
    layer: Any = model.get_submodule(spec.layer)
    norm = layer.input_layernorm if hasattr(layer, "input_layernorm") else layer.ln_1

    def find(_: nn.Module, args: tuple[Tensor, ...], normed: Tensor) -> None:
        v = args[0] if spec.input == "pre_norm" else normed
        v = v[0]
        if spec.scope == "prompt":
            v = v[: adapter.prompt_length].mean(0).expand(len(v), -1)
        adapter.gates[spec.layer] = router_gates(spec, adapter.tensors, v)

    norm.register_forward_hook(find)


def _lora_hook(adapter: OracleAdapter, expert: LoraExpertSpec) -> Any:
    def add(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + adapter.lora(expert, args[0].reshape(-1, args[0].shape[-1])).view_as(y)

    return add


def _hook_feed_forwards(model: nn.Module, adapters: Sequence[OracleAdapter]) -> None:
    """One hook a module: serial bottlenecks do not see what parallel ones add."""
    found: dict[str, list[tuple[OracleAdapter, BottleneckExpertSpec]]] = {}
    for adapter in adapters:
        for expert in adapter.manifest.experts:
            if isinstance(expert, BottleneckExpertSpec):
                found.setdefault(expert.module, []).append((adapter, expert))
    for path, pairs in found.items():

        def add(
            _: nn.Module,
            args: tuple[Tensor, ...],
            y: Tensor,
            pairs: list[tuple[OracleAdapter, BottleneckExpertSpec]] = pairs,
        ) -> Tensor:
            read = {"parallel": args[0][0], "serial": y[0]}
            terms = [
                adapter.bottleneck(expert, read[expert.placement]) for adapter, expert in pairs
            ]
            return y + torch.stack(terms).sum(0)

        model.get_submodule(path).register_forward_hook(add)
