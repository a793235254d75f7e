"""The experts and routers of an adapter: settings and a base in, its manifest out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from transformers.pytorch_utils import Conv1D

from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import LoraSettings, MoaSettings, MoeLoraSettings
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.native import FORMAT
from adapters_store.types import AdapterManifest, BaseModelSpec, BlockSpec, LinearShape
from router_engine.model.loader import base_spec


def shape_of(name: str, model: Any) -> BaseModelSpec:
    """The shape of a model of transformers, on any device; `name` is its public one."""
    linears = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            rows, columns = module.weight.shape
            transposed = isinstance(module, Conv1D)
            linears[path] = LinearShape(*((rows, columns) if transposed else (columns, rows)))
    return base_spec(name, model, linears)


def moa_manifest(base: BaseModelSpec, lora: LoraSettings, moa: MoaSettings) -> AdapterManifest:
    """MoA: one router a layer, one gate for each expert there.

    Gates are in the order LoRA in the attention, prompt, LoRA in the feed-forward part, bottleneck.
    Raises TrainingError for a target or a kind of expert that the base has no place for.
    """
    experts: list[ExpertSpec] = []
    routers = []
    _check_ranks(lora, moa)
    for block, paths in _targets(base, lora):
        loras = [
            _lora(path, base.linears[path], lora, rank=_rank_of(path, lora, moa.rank_of))
            for path in paths
        ]
        here: list[ExpertSpec] = [e for e in loras if e.module.startswith(f"{block.attention}.")]
        if moa.prompt:
            here.append(_prompt(base, block, moa.prompt))
        here += [e for e in loras if not e.module.startswith(f"{block.attention}.")]
        if moa.parallel:
            here.append(_bottleneck(base, block, moa.parallel))
        experts += [replace(expert, gate=gate) for gate, expert in enumerate(here)]
        hidden = moa.router_factor * len(here)
        router = _router(base, block, len(here), moa.router_input)
        kind: Literal["linear", "swiglu"] = "swiglu" if hidden else "linear"
        threshold = _threshold(block, moa) if moa.variant == "sparse" else None
        scope: Literal["token", "prompt"] = "prompt" if moa.variant == "instance" else "token"
        routers.append(replace(router, kind=kind, hidden=hidden, threshold=threshold, scope=scope))
    return AdapterManifest(FORMAT, tuple(experts), base.name, tuple(routers))


def moe_lora_manifest(
    base: BaseModelSpec, lora: LoraSettings, moe: MoeLoraSettings
) -> AdapterManifest:
    """Homogeneous mixture of LoRA: gate e of a layer is that of expert e at each of its targets."""
    experts = []
    routers = []
    for block, paths in _targets(base, lora):
        for path in paths:
            experts += [
                replace(
                    _lora(path, base.linears[path], lora, rank=lora.rank, infix=f"experts.{gate}."),
                    gate=gate,
                )
                for gate in range(moe.experts)
            ]
        router = _router(base, block, moe.experts, moe.router_input)
        routers.append(replace(router, activation="softmax", top_k=moe.top_k))
    return AdapterManifest(FORMAT, tuple(experts), base.name, tuple(routers))


def _targets(base: BaseModelSpec, lora: LoraSettings) -> Iterable[tuple[BlockSpec, list[str]]]:
    """Each layer with those of its linear layers that are targets."""
    inside = {
        block: [path for path in base.linears if path.startswith(f"{block.path}.")]
        for block in base.blocks
    }
    for target in lora.targets:
        for paths in inside.values():
            if not any(_is(path, target) for path in paths):
                names = ", ".join(sorted({path.rpartition(".")[2] for path in paths}))
                raise TrainingError(
                    f"target {target!r} is no linear layer inside a layer of {base.name}: "
                    f"use {names}"
                )
    return [
        (block, [path for path in paths if any(_is(path, target) for target in lora.targets)])
        for block, paths in inside.items()
    ]


def _is(path: str, target: str) -> bool:
    return f".{path}".endswith(f".{target}")


def _check_ranks(lora: LoraSettings, moa: MoaSettings) -> None:
    for target in moa.rank_of:
        if target not in lora.targets:
            names = ", ".join(lora.targets)
            raise TrainingError(f"ranks names {target!r}, which is no target: use {names}")


def _rank_of(path: str, lora: LoraSettings, ranks: Mapping[str, int]) -> int:
    own = [rank for target, rank in ranks.items() if _is(path, target)]
    return own[0] if own else lora.rank


def _lora(
    path: str, shape: LinearShape, lora: LoraSettings, *, rank: int, infix: str = ""
) -> LoraExpertSpec:
    return LoraExpertSpec(
        module=path,
        rank=rank,
        scale=lora.alpha / (rank**0.5 if lora.rslora else rank),
        in_features=shape.in_features,
        out_features=shape.out_features,
        tensor_a=f"{path}.{infix}lora_A.weight",
        tensor_b=f"{path}.{infix}lora_B.weight",
    )


def _bottleneck(base: BaseModelSpec, block: BlockSpec, size: int) -> BottleneckExpertSpec:
    prefix = f"{block.feed_forward}.parallel"
    return BottleneckExpertSpec(
        module=block.feed_forward,
        placement="parallel",
        size=size,
        features=base.hidden_size,
        activation="silu",
        tensor_down=f"{prefix}.down.weight",
        tensor_up=f"{prefix}.up.weight",
        tensor_down_bias=f"{prefix}.down.bias",
        tensor_up_bias=f"{prefix}.up.bias",
    )


def _prompt(base: BaseModelSpec, block: BlockSpec, length: int) -> PromptExpertSpec:
    if f"{block.attention}.k_proj" not in base.linears:
        raise TrainingError(
            f"prompt is {length}, but {base.name} ({base.architecture}) has no k_proj and v_proj "
            "to make keys and values with; it must be 0"
        )
    return PromptExpertSpec(
        module=block.attention,
        length=length,
        features=base.hidden_size,
        heads=base.num_heads,
        tensor_prompt=f"{block.attention}.prompt.weight",
        tensor_head_gates=f"{block.attention}.prompt.head_gates",
    )


def _router(
    base: BaseModelSpec, block: BlockSpec, outputs: int, read: Literal["pre_norm", "post_norm"]
) -> GatingNetworkSpec:
    return GatingNetworkSpec(
        layer=block.path,
        kind="linear",
        input=read,
        outputs=outputs,
        features=base.hidden_size,
        prefix=f"{block.path}.router",
    )


def _threshold(block: BlockSpec, moa: MoaSettings) -> ThresholdSpec:
    has_net = moa.threshold != "constant"
    return ThresholdSpec(moa.gamma_max, f"{block.path}.threshold" if has_net else None)
