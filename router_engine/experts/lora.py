"""LoRA: rank rows of linear layers, which `experts.step` adds there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.lora import LoraExpertSpec
from router_engine.experts.base import ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows
from router_engine.experts.kinds import ExpertKind, Loading
from router_engine.experts.prototypes import prototypes


def lora_rows(
    specs: Sequence[LoraExpertSpec], tensors: AdapterTensors, loading: Loading
) -> dict[str, ExpertRows]:
    """The rows of every LoRA by module; those of several on one module one after another."""
    by_site: dict[str, list[LoraExpertSpec]] = {}
    for expert in specs:
        by_site.setdefault(expert.site, []).append(expert)
    factors = [_factors(experts, tensors, loading.dtype) for experts in by_site.values()]
    if loading.is_plain_lora:
        directions = prototypes(factors)
    else:  # `arrow` refuses it
        directions = [torch.zeros(a.shape[0]) for a, _ in factors]
    return {
        site: ExpertRows(a, b, experts[0].scale, prototype, gate=gate_rows(experts))
        for (site, experts), (a, b), prototype in zip(
            by_site.items(), factors, directions, strict=True
        )
    }


def _factors(
    experts: Sequence[LoraExpertSpec], tensors: AdapterTensors, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """a [rows, in], b [rows, out]."""
    a = [tensors.side(expert, "down", expert.tensor_a) for expert in experts]
    b = [tensors.side(expert, "up", expert.tensor_b).T * expert.scale for expert in experts]
    return torch.cat(a).to(dtype).contiguous(), torch.cat(b).to(dtype).contiguous()


KIND = ExpertKind("lora", lora_rows)
