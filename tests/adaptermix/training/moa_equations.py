"""A decoder of Llama's kind with MoA experts, written out in plain torch: the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json
from adapters_store.types import AdapterManifest
from router_engine.model.probe import layers_of


class Written:
    """Logits of one row of tokens under a manifest and its tensors; keeps the gates of layers."""

    def __init__(self, base: Any, manifest: AdapterManifest, tensors: Mapping[str, Tensor]) -> None:
        self._base = base
        self._manifest = manifest
        self._tensors = tensors
        self.gates: list[Tensor] = []  # [tokens, outputs] of each layer

    @torch.no_grad()
    def logits(self, tokens: Tensor, prompt_length: int | None = None) -> Tensor:
        """tokens [n] to [n, vocabulary]; with prompt_length the gates are of the prompt's mean."""
        model = self._base.model
        x = model.embed_tokens(tokens)
        self.gates = []
        for router, block in zip(self._manifest.routers, model.layers, strict=True):
            here = [e for e in self._manifest.experts if e.module.startswith(f"{router.layer}.")]
            normed = block.input_layernorm(x)
            read = x if router.input == "pre_norm" else normed
            if prompt_length is not None:
                read = read[:prompt_length].mean(dim=0, keepdim=True).expand(len(tokens), -1)
            g = self._gates(router, read)
            self.gates.append(g)
            x = x + self._attention(block.self_attn, router.layer, here, normed, g)
            normed = block.post_attention_layernorm(x)
            x = x + self._feed_forward(block.mlp, router.layer, here, normed, g)
        out: Tensor = self._base.lm_head(model.norm(x))
        return out

    def _gates(self, router: GatingNetworkSpec, v: Tensor) -> Tensor:
        t, p = self._tensors, router.prefix
        if router.kind == "linear":
            z = v @ t[f"{p}.weight"].T + t[f"{p}.bias"]
        else:
            w1, w3 = (v @ t[f"{p}.{n}.weight"].T + t[f"{p}.{n}.bias"] for n in ("w1", "w3"))
            z = (silu(w1) * w3) @ t[f"{p}.w2.weight"].T + t[f"{p}.w2.bias"]
        if router.activation == "softmax":
            assert router.top_k is not None
            lowest = z.sort(dim=-1, descending=True).values[:, router.top_k - 1, None]
            weights = torch.where(z >= lowest, z.exp(), 0)
            return weights / weights.sum(dim=-1, keepdim=True)
        g = 1 / (1 + (-z).exp())
        if router.threshold is None:
            return g
        theta: Any = router.threshold.maximum
        if (net := router.threshold.prefix) is not None:
            theta = theta * (v @ t[f"{net}.weight"].T + t[f"{net}.bias"]).sigmoid()
        return torch.where(g >= theta, g, 0)

    def _linear(
        self, layer: Any, path: str, here: list[ExpertSpec], x: Tensor, g: Tensor
    ) -> Tensor:
        y: Tensor = layer(x)
        for e in here:
            if isinstance(e, LoraExpertSpec) and e.module == path:
                assert e.gate is not None
                a, b = self._tensors[e.tensor_a], self._tensors[e.tensor_b]
                y = y + g[:, e.gate, None] * e.scale * (x @ a.T @ b.T)
        return y

    def _attention(
        self, attention: Any, layer: str, here: list[ExpertSpec], x: Tensor, g: Tensor
    ) -> Tensor:
        n, d = len(x), attention.head_dim
        q, k, v = (
            self._linear(getattr(attention, name), f"{layer}.self_attn.{name}", here, x, g)
            .view(n, -1, d)
            .transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        cos, sin = self._base.model.rotary_emb(x[None], torch.arange(n)[None])
        q, k = (
            u * cos[0] + torch.cat([-u[..., d // 2 :], u[..., : d // 2]], -1) * sin[0]
            for u in (q, k)
        )
        share = len(q) // len(k)
        k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
        scores = (q @ k.mT / d**0.5).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        attended = scores.softmax(-1) @ v  # [heads, tokens, head_dim]
        for e in here:
            if isinstance(e, PromptExpertSpec):
                assert e.gate is not None
                p, c = self._tensors[e.tensor_prompt], self._tensors[e.tensor_head_gates]
                keys, values = (
                    layer(p).view(e.length, -1, d).transpose(0, 1).repeat_interleave(share, 0)
                    for layer in (attention.k_proj, attention.v_proj)
                )
                if hasattr(attention, "k_norm"):
                    keys = attention.k_norm(keys)
                own = (q @ keys.mT / d**0.5).softmax(-1) @ values
                attended = attended + g[:, e.gate, None] * c[:, None, None] * own
        joined = attended.transpose(0, 1).reshape(n, -1)
        return self._linear(attention.o_proj, f"{layer}.self_attn.o_proj", here, joined, g)

    def _feed_forward(
        self, mlp: Any, layer: str, here: list[ExpertSpec], x: Tensor, g: Tensor
    ) -> Tensor:
        gate, up = (
            self._linear(getattr(mlp, name), f"{layer}.mlp.{name}", here, x, g)
            for name in ("gate_proj", "up_proj")
        )
        y = self._linear(mlp.down_proj, f"{layer}.mlp.down_proj", here, silu(gate) * up, g)
        for e in here:
            if isinstance(e, BottleneckExpertSpec):
                assert e.gate is not None
                assert e.tensor_down_bias is not None
                assert e.tensor_up_bias is not None
                t = self._tensors
                inner = silu(x @ t[e.tensor_down].T + t[e.tensor_down_bias])
                out = inner @ t[e.tensor_up].T + t[e.tensor_up_bias]
                y = y + g[:, e.gate, None] * e.scale * out
        return y


def written(base: Any, folder: Path) -> Written:
    """The oracle on a folder's own files, which hold just the tensors that the manifest names."""
    manifest = manifest_from_json((folder / MANIFEST_FILE).read_bytes())
    assert len(manifest.routers) == len(layers_of(base)[1])
    return Written(base, manifest, load_file(folder / TENSOR_FILE))
