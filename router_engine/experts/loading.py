"""Reads an adapter: every kind of expert into rank rows by site, and its routers."""

from __future__ import annotations

import time

import torch
from safetensors import safe_open

from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from router_engine.experts.base import AdapterContents, BaseProjections, ExpertRows, HostAdapter
from router_engine.experts.bottleneck import bottleneck_rows
from router_engine.experts.contained import contained
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gating import router_weights
from router_engine.experts.lora import lora_rows
from router_engine.experts.prompt import prompt_rows
from router_engine.experts.variants import Variant, average


def load_adapter(
    digest: str,
    files: AdapterContents,
    dtype: torch.dtype,
    base: BaseProjections,
    variant: Variant = average,
) -> HostAdapter:
    """Read an adapter's rank rows and routers in `dtype`, every scale folded in in fp32.

    `base` makes a prompt's keys and values. `variant` weighs the copies of experts that have them.
    Numbers that are not finite are contained (`experts.contained`).
    """
    started = time.perf_counter()
    manifest = files.manifest
    with safe_open(str(files.tensors), framework="pt") as file:
        tensors = AdapterTensors(file, variant)
        rows: dict[str, ExpertRows] = lora_rows(manifest, tensors, dtype)
        for expert in manifest.experts:
            if isinstance(expert, BottleneckExpertSpec):
                rows[expert.site] = bottleneck_rows(expert, tensors, dtype)
            elif isinstance(expert, PromptExpertSpec):
                rows[expert.site] = prompt_rows(expert, tensors, dtype, base)
        routers = {spec.layer: router_weights(spec, tensors, dtype) for spec in manifest.routers}
    rows = {site: contained(each) for site, each in rows.items()}
    return HostAdapter(digest, manifest, rows, time.perf_counter() - started, routers)
