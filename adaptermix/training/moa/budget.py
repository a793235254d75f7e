"""Numbers of parameters of adapters, and ranks that make the arms of a comparison equal in size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import AutoModelForCausalLM

from adaptermix.training.moa.plan import moe_lora_manifest, shape_of
from adaptermix.training.settings import LoraSettings, MoeLoraSettings
from adapters_store.types import AdapterManifest, BaseModelSpec
from router_engine.model.checkpoint import refused
from router_engine.model.loader import described_by


def parameters(manifest: AdapterManifest) -> int:
    """Numbers in an adapter's experts and routers, a frozen threshold net's included."""
    return sum(math.prod(shape) for part in manifest.parts for shape in part.tensor_shapes.values())


def shape_of_base(base: str) -> BaseModelSpec:
    """The shape of the base in a directory or of a hub id, without its weights."""
    make = partial(AutoModelForCausalLM.from_config, described_by(base), trust_remote_code=False)
    with torch.device("meta"):
        return shape_of(base, refused(base, "its own code cannot run it", make))


def lora_parameters(base: BaseModelSpec, lora: LoraSettings) -> int:
    """Those of plain LoRA."""
    each = [
        lora.rank * (shape.in_features + shape.out_features)
        for path, shape in base.linears.items()
        if any(f".{path}".endswith(f".{target}") for target in lora.targets)
    ]
    return sum(each)


def lora_of_size(base: BaseModelSpec, lora: LoraSettings, budget: int) -> LoraSettings:
    """Plain LoRA whose rank brings it nearest to `budget` parameters; alpha / rank is kept."""
    return _nearest(lora, budget, lambda settings: lora_parameters(base, settings))


def moe_lora_of_size(
    base: BaseModelSpec, lora: LoraSettings, moe: MoeLoraSettings, budget: int
) -> LoraSettings:
    """The same of a homogeneous mixture of LoRA, its routers counted."""
    return _nearest(lora, budget, lambda shape: parameters(moe_lora_manifest(base, shape, moe)))


def _nearest(lora: LoraSettings, budget: int, count: Callable[[LoraSettings], int]) -> LoraSettings:
    """The number of parameters is linear in the rank."""
    one, two = (count(replace(lora, rank=rank)) for rank in (1, 2))
    rank = max(1, 1 + round((budget - one) / (two - one)))
    return replace(lora, rank=rank, alpha=lora.alpha * rank / lora.rank)
