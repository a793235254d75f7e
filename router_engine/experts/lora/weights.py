"""LoRA on the host: reads an adapter's safetensors into rank rows."""

from __future__ import annotations

import time

import torch
from safetensors import safe_open

from adapters_store.types import AdapterManifest
from router_engine.experts.base import AdapterFiles, HostAdapter, LowRankPair


def load_lora(digest: str, files: AdapterFiles, dtype: torch.dtype) -> HostAdapter:
    """Read every pair of an adapter as rank rows in `dtype`, the scale folded into B in fp32."""
    started = time.perf_counter()
    manifest: AdapterManifest = files.manifest
    pairs: dict[str, LowRankPair] = {}
    with safe_open(str(files.tensors), framework="pt") as tensors:
        for expert in manifest.experts:
            a = tensors.get_tensor(expert.tensor_a)
            b = tensors.get_tensor(expert.tensor_b).float() * expert.scale
            pairs[expert.module] = LowRankPair(
                a=a.to(dtype).contiguous(),
                b=b.T.to(dtype).contiguous(),
                scale=expert.scale,
            )
    return HostAdapter(digest, manifest, pairs, time.perf_counter() - started)
