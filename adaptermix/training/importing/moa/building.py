"""A MoA checkpoint's layers -> experts and routers of our own format, as arrays.

MoA (https://arxiv.org/abs/2506.05928): in each layer LoRA on projections, a parallel bottleneck and
a prompt, each gated by a column of one router with sigmoids; sparse: gates below a threshold are 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from adaptermix.training.importing.moa.keys import (
    LINEAR,
    PARALLEL,
    PROMPT,
    SWIGLU,
    THRESHOLD,
    Array,
    MoaKeys,
    MoaLayer,
)
from adapters_store.errors import InvalidAdapterError
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.native import FORMAT, NativeAdapter
from adapters_store.problems import bounded_problems
from adapters_store.types import AdapterManifest, Problem

_MODULES = {
    **{part: f"self_attn.{part.lower()}_proj" for part in ("Q", "K", "V", "O")},
    **{part: f"mlp.{part.lower()}_proj" for part in ("UP", "GATE", "DOWN")},
}
_ROUTERS: tuple[Literal["linear", "swiglu"], ...] = (LINEAR, SWIGLU)


@dataclass(frozen=True, slots=True)
class Convention:
    """The computation of an implementation, which no tensor tells."""

    scale: float  # of every LoRA
    router_input: Literal["pre_norm", "post_norm"]
    threshold: float | None = None  # the highest; None: soft
    is_constant: bool = False  # the threshold is the highest everywhere, without a net


def summary(adapter: NativeAdapter) -> str:
    """In one line, for people."""
    experts, routers = adapter.manifest.experts, adapter.manifest.routers
    how = "sparse" if any(router.threshold for router in routers) else "soft"
    kinds = " and ".join(sorted({router.kind for router in routers}))
    gates = " or ".join(map(str, sorted({router.outputs for router in routers})))
    return (
        f"{how} MoA: {len(experts)} experts in {len(routers)} layers, {kinds} routers with {gates} "
        "gates"
    )


def build(keys: MoaKeys, convention: Convention, base_model: str | None = None) -> NativeAdapter:
    """Experts and routers of all layers that have experts.

    `keys` has no problems left. Raises InvalidAdapterError with every layer whose router does not
    fit its experts, and every tensor of another shape than the others of its part ask for.
    """
    builder = _Builder(convention)
    for layer in keys.layers.values():
        builder.add(layer)
    if not builder.experts and not builder.problems:
        builder.problems.append(Problem("checkpoint", "holds no expert in any layer"))
    if builder.problems:
        raise InvalidAdapterError(bounded_problems(builder.problems))
    manifest = AdapterManifest(
        FORMAT, tuple(builder.experts), base_model=base_model, routers=tuple(builder.routers)
    )
    return NativeAdapter(manifest, builder.tensors)


def half_split_rows(b: Array, heads: int) -> Array:
    """B [heads * d, rank] of a query or key projection, from pairs that lie together to halves.

    Meta's Llama rotates rows 2j and 2j + 1 of a head as a pair, Hugging Face's rows j and d/2 + j:
    row c d/2 + j here is row 2j + c there (c is 0 or 1).
    """
    paired = b.reshape(heads, -1, 2, b.shape[1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(b.shape)


def refuse(problems: Iterable[Problem]) -> None:
    """Raise InvalidAdapterError if there are any."""
    listed = list(problems)
    if listed:
        raise InvalidAdapterError(bounded_problems(listed))


@dataclass(slots=True)
class _Builder:
    convention: Convention
    experts: list[ExpertSpec] = field(default_factory=list)
    routers: list[GatingNetworkSpec] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, layer: MoaLayer) -> None:
        """Layers without experts have a router of no gates, which is left out."""
        if not layer.experts:
            return
        path = f"model.layers.{layer.index}"
        router = self._router(path, layer)
        if router is None:
            return
        if router.outputs != len(layer.experts):
            self._refuse(
                path,
                f"has a router of {router.outputs} gates for {len(layer.experts)} experts "
                f"({', '.join(layer.experts)}): is the file whole?",
            )
            return
        self.routers.append(router)
        self._keep(layer, router.kind, router.prefix, router)
        if router.threshold is not None and router.threshold.prefix is not None:
            self._keep(layer, THRESHOLD, router.threshold.prefix, router)
        for gate, part in enumerate(layer.experts):
            name = _name(path, part)
            expert = self._expert(name, part, layer.parts[part], gate)
            self.experts.append(expert)
            self._keep(layer, part, name, expert)

    def _router(self, path: str, layer: MoaLayer) -> GatingNetworkSpec | None:
        kinds = [kind for kind in _ROUTERS if kind in layer.parts]
        if len(kinds) != 1:
            self._refuse(path, f"has {' and a '.join(kinds) or 'no'} router, expected one")
            return None
        threshold = None
        if self.convention.threshold is not None:
            prefix = None if self.convention.is_constant else f"{path}.threshold"
            threshold = ThresholdSpec(self.convention.threshold, prefix)
            if prefix is not None and THRESHOLD not in layer.parts:
                self._refuse(path, "has no adapter_threshold_fn, which sparse MoA has")
                return None
        pieces = layer.parts[kinds[0]]
        first = pieces["weight" if kinds[0] == LINEAR else "w1.weight"]
        last = pieces["weight" if kinds[0] == LINEAR else "w2.weight"]
        return GatingNetworkSpec(
            layer=path,
            kind=kinds[0],
            input=self.convention.router_input,
            outputs=last.shape[0],
            features=first.shape[1],
            prefix=f"{path}.router",
            hidden=0 if kinds[0] == LINEAR else first.shape[0],
            threshold=threshold,
        )

    def _expert(self, name: str, part: str, pieces: Mapping[str, Array], gate: int) -> ExpertSpec:
        if part == PARALLEL:
            size, features = pieces["down_proj.weight"].shape
            return BottleneckExpertSpec(
                module=name.removesuffix(".parallel"),
                placement="parallel",
                size=size,
                features=features,
                activation="silu",
                tensor_down=f"{name}.down_proj.weight",
                tensor_up=f"{name}.up_proj.weight",
                tensor_down_bias=f"{name}.down_proj.bias",
                tensor_up_bias=f"{name}.up_proj.bias",
                gate=gate,
            )
        if part == PROMPT:
            length, features = pieces["weight"].shape
            return PromptExpertSpec(
                module=name.removesuffix(".prompt"),
                length=length,
                features=features,
                heads=pieces["gate"].size,
                tensor_prompt=f"{name}.weight",
                tensor_head_gates=f"{name}.gate",
                gate=gate,
            )
        a, b = pieces["lora_A.weight"], pieces["lora_B.weight"]
        return LoraExpertSpec(
            module=name,
            rank=a.shape[0],
            scale=self.convention.scale,
            in_features=a.shape[1],
            out_features=b.shape[0],
            tensor_a=f"{name}.lora_A.weight",
            tensor_b=f"{name}.lora_B.weight",
            gate=gate,
        )

    def _keep(
        self, layer: MoaLayer, part: str, name: str, spec: ExpertSpec | GatingNetworkSpec
    ) -> None:
        """The part's tensors, as `name` and their pieces; `spec` says what shapes they have."""
        shapes = spec.tensor_shapes
        for piece, array in layer.parts[part].items():
            # The gates of a prompt's heads were saved as [1, heads, 1, 1].
            tensor = array.reshape(-1) if piece == "gate" else array
            expected = shapes[f"{name}.{piece}"]
            if tensor.shape != expected:
                self._refuse(
                    layer.keys[part, piece],
                    f"has shape {list(tensor.shape)}, expected {list(expected)} by what is "
                    "beside it",
                )
            self.tensors[f"{name}.{piece}"] = np.ascontiguousarray(tensor, dtype=np.float32)

    def _refuse(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, message))


def _name(path: str, part: str) -> str:
    """The prefix of the names of an expert's tensors."""
    if part == PARALLEL:
        return f"{path}.mlp.parallel"
    return f"{path}.self_attn.prompt" if part == PROMPT else f"{path}.{_MODULES[part]}"
