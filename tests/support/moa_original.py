"""MoA in plain torch: a Llama layer, the adapter as its checkpoint holds it, and as we serve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.types import AdapterManifest

HIDDEN, INNER, HEADS, KV_HEADS, HEAD = 16, 24, 4, 2, 4
SHAPES = {
    "Q": (HEADS * HEAD, HIDDEN),
    "K": (KV_HEADS * HEAD, HIDDEN),
    "V": (KV_HEADS * HEAD, HIDDEN),
    "O": (HIDDEN, HEADS * HEAD),
    "UP": (INNER, HIDDEN),
    "GATE": (INNER, HIDDEN),
    "DOWN": (HIDDEN, INNER),
}
Rotation = Callable[[Tensor], Tensor]


class Adapter(Protocol):
    """What one adapter adds in one layer."""

    def route(self, x: Tensor, normed: Tensor) -> None:
        """Find the gates of x [tokens, hidden], before and after the first norm."""

    def lora(self, part: str, v: Tensor) -> Tensor:
        """What is added to a projection of v."""

    def prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What is added to attention by q [tokens, heads, d] and the base's k_proj and v_proj."""

    def parallel(self, v: Tensor) -> Tensor:
        """What is added to the feed-forward module that reads v."""


def angles(tokens: int) -> Tensor:
    """[tokens, 1, d / 2]."""
    frequencies = 10000.0 ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    return torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies)[:, None]


def interleaved(x: Tensor) -> Tensor:
    """Meta's rotation of x [tokens, heads, d]: numbers 2j and 2j + 1 are a pair."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    turned = pairs * torch.polar(torch.ones(()).double(), angles(len(x)))
    return torch.view_as_real(turned).reshape(x.shape)


def half_split(x: Tensor) -> Tensor:
    """Hugging Face's rotation of x [tokens, heads, d]: numbers j and d / 2 + j are a pair."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles(len(x)).cos(), angles(len(x)).sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def halves_of_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows for `half_split` of rows for `interleaved`, one by one as the conversion defines it."""
    made = torch.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        for j in range(size // 2):
            for c in (0, 1):
                made[head * size + c * size // 2 + j] = weight[head * size + 2 * j + c]
    return made


@dataclass(frozen=True)
class LlamaLayer:
    """The base's weights of one layer, and how it rotates."""

    weights: Mapping[str, Tensor]
    rotate: Rotation

    @classmethod
    def random(cls) -> LlamaLayer:
        """In Meta's layout."""
        generator = torch.Generator().manual_seed(1)
        made = {
            part: torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.4
            for part, shape in SHAPES.items()
        }
        return cls(made, interleaved)

    def converted(self) -> LlamaLayer:
        """The same in Hugging Face's layout."""
        weights = {
            **self.weights,
            "Q": halves_of_pairs(self.weights["Q"], HEADS),
            "K": halves_of_pairs(self.weights["K"], KV_HEADS),
        }
        return LlamaLayer(weights, half_split)

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        """x [tokens, hidden] -> the layer's output, causal, without weights in the norms."""
        normed = _norm(x)
        adapter.route(x, normed)
        q, k, v = (self._project(part, normed, adapter) for part in ("Q", "K", "V"))
        queries = self.rotate(q.view(len(x), HEADS, HEAD))
        keys = self.rotate(k.view(len(x), KV_HEADS, HEAD))
        values = v.view(len(x), KV_HEADS, HEAD)
        attended = attend(queries, keys, values, is_causal=True).reshape(len(x), -1)
        attended = attended + adapter.prompt(queries, self.weights["K"], self.weights["V"])
        h = x + self._project("O", attended, adapter)
        normed = _norm(h)
        gate = silu(self._project("GATE", normed, adapter))
        inner = gate * self._project("UP", normed, adapter)
        return h + self._project("DOWN", inner, adapter) + adapter.parallel(normed)

    def _project(self, part: str, v: Tensor, adapter: Adapter) -> Tensor:
        return linear(v, self.weights[part]) + adapter.lora(part, v)


def attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """q [tokens, heads, d], k and v [keys, kv heads, d] -> [tokens, heads, d]."""
    k, v = (side.repeat_interleave(HEADS // KV_HEADS, dim=1) for side in (k, v))
    scores = torch.einsum("thd,lhd->htl", q, k) / HEAD**0.5
    if is_causal:
        scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1)
    return torch.einsum("htl,lhd->thd", scores.softmax(-1), v)


def _norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@dataclass
class Original:
    """The adapter of one layer by its checkpoint's keys.

    `names` are what the checkpoint calls the parts; `order` the router's columns; `maximum` the
    highest threshold, a constant where `net` is None.
    """

    state: Mapping[str, Tensor]
    names: Mapping[str, str]
    order: tuple[str, ...]
    scale: float
    reads_normed: bool
    maximum: float | None = None
    is_constant: bool = False

    def route(self, x: Tensor, normed: Tensor) -> None:
        v = normed if self.reads_normed else x
        router = self.names["router"]
        if f"{router}.w1.weight" in self.state:
            wide = silu(self._linear(f"{router}.w1", v)) * self._linear(f"{router}.w3", v)
            z = self._linear(f"{router}.w2", wide)
        else:
            z = self._linear(router, v)
        gates = z.sigmoid()
        if self.maximum is not None:
            theta = torch.full((len(v), 1), self.maximum, dtype=v.dtype)
            if not self.is_constant:
                theta = self.maximum * self._linear(self.names["threshold"], v).sigmoid()
            gates = torch.where(gates >= theta, gates, torch.zeros_like(gates))
        self.gates = dict(zip(self.order, gates.T[:, :, None], strict=True))

    def lora(self, part: str, v: Tensor) -> Tensor:
        if part not in self.gates:
            return torch.zeros(())
        a = self._get(f"{self.names[part]}.lora_A.weight")
        b = self._get(f"{self.names[part]}.lora_B.weight")
        added: Tensor = self.gates[part] * self.scale * (v @ a.T @ b.T)
        return added

    def prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if "prompt" not in self.gates:
            return torch.zeros(())
        prompt = self._get(f"{self.names['prompt']}.weight")
        keys = linear(prompt, k).view(-1, KV_HEADS, HEAD)
        values = linear(prompt, v).view(-1, KV_HEADS, HEAD)
        heads = self._get(f"{self.names['prompt']}_gate").view(1, HEADS, 1)
        read = (heads * attend(q, keys, values, is_causal=False)).reshape(len(q), -1)
        added: Tensor = self.gates["prompt"] * read
        return added

    def parallel(self, v: Tensor) -> Tensor:
        if "parallel" not in self.gates:
            return torch.zeros(())
        name = self.names["parallel"]
        inner = silu(self._linear(f"{name}.down_proj", v))
        added: Tensor = self.gates["parallel"] * self._linear(f"{name}.up_proj", inner)
        return added

    def _get(self, key: str) -> Tensor:
        return self.state[key].double()

    def _linear(self, name: str, v: Tensor) -> Tensor:
        return linear(v, self._get(f"{name}.weight"), self._get(f"{name}.bias"))


@dataclass
class Served:
    """The adapter of one layer by its manifest, as the docstrings of the specs say it."""

    manifest: AdapterManifest
    tensors: Mapping[str, Tensor]
    layer: str

    def route(self, x: Tensor, normed: Tensor) -> None:
        (router,) = (router for router in self.manifest.routers if router.layer == self.layer)
        v = x if router.input == "pre_norm" else normed
        if router.kind == "swiglu":
            wide = silu(self._linear(f"{router.prefix}.w1", v))
            z = self._linear(f"{router.prefix}.w2", wide * self._linear(f"{router.prefix}.w3", v))
        else:
            z = self._linear(router.prefix, v)
        self.gates = z.sigmoid()
        if router.threshold is not None:
            theta = torch.tensor(router.threshold.maximum, dtype=v.dtype)
            if router.threshold.prefix is not None:
                theta = theta * self._linear(router.threshold.prefix, v).sigmoid()
            self.gates = self.gates * (self.gates >= theta)

    def lora(self, part: str, v: Tensor) -> Tensor:
        group = "self_attn" if part in "QKVO" else "mlp"
        added = torch.zeros(())
        for expert in self._at(f"{self.layer}.{group}.{part.lower()}_proj"):
            assert isinstance(expert, LoraExpertSpec)
            rows = v @ self._get(expert.tensor_a).T
            added = added + self._gate(expert) * expert.scale * rows @ self._get(expert.tensor_b).T
        return added

    def prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        added = torch.zeros(())
        for expert in self._at(f"{self.layer}.self_attn#prompt"):
            assert isinstance(expert, PromptExpertSpec)
            prompt = self._get(expert.tensor_prompt)
            keys = linear(prompt, k).view(-1, KV_HEADS, HEAD)
            values = linear(prompt, v).view(-1, KV_HEADS, HEAD)
            read = attend(q, keys, values, is_causal=False)
            read = self._get(expert.tensor_head_gates)[:, None] * read
            added = added + self._gate(expert) * read.reshape(len(q), -1)
        return added

    def parallel(self, v: Tensor) -> Tensor:
        added = torch.zeros(())
        for expert in self._at(f"{self.layer}.mlp#parallel"):
            assert isinstance(expert, BottleneckExpertSpec)
            assert expert.activation == "silu"
            assert expert.tensor_down_bias is not None
            assert expert.tensor_up_bias is not None
            down = linear(v, self._get(expert.tensor_down), self._get(expert.tensor_down_bias))
            up = linear(silu(down), self._get(expert.tensor_up), self._get(expert.tensor_up_bias))
            added = added + self._gate(expert) * expert.scale * up
        return added

    def _at(self, site: str) -> list[ExpertSpec]:
        return [expert for expert in self.manifest.experts if expert.site == site]

    def _gate(self, expert: ExpertSpec) -> Tensor:
        assert expert.gate is not None
        return self.gates[:, expert.gate, None]

    def _get(self, key: str) -> Tensor:
        return self.tensors[key].double()

    def _linear(self, name: str, v: Tensor) -> Tensor:
        return linear(v, self._get(f"{name}.weight"), self._get(f"{name}.bias"))
