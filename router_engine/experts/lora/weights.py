"""LoRA on the host: reads an adapter's safetensors into rank rows."""

from __future__ import annotations

import time

import torch
from safetensors import safe_open
from torch import Tensor

from adapters_store.types import AdapterManifest
from router_engine.experts.base import AdapterFiles, HostAdapter, LowRankPair
from router_engine.experts.lora.prototypes import prototypes


def load_lora(digest: str, files: AdapterFiles, dtype: torch.dtype) -> HostAdapter:
    """Read every pair of an adapter as rank rows in `dtype`, the scale folded into B in fp32."""
    started = time.perf_counter()
    manifest: AdapterManifest = files.manifest
    factors: list[tuple[Tensor, Tensor]] = []
    with safe_open(str(files.tensors), framework="pt") as tensors:
        for expert in manifest.lora_experts:
            a = tensors.get_tensor(expert.tensor_a)
            b = tensors.get_tensor(expert.tensor_b).float() * expert.scale
            factors.append((a.to(dtype).contiguous(), b.T.to(dtype).contiguous()))
    pairs = {
        expert.module: LowRankPair(a, b, expert.scale, prototype)
        for expert, (a, b), prototype in zip(
            manifest.lora_experts, factors, prototypes(factors), strict=True
        )
    }
    return HostAdapter(digest, manifest, pairs, time.perf_counter() - started)
