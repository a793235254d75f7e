"""The model of a run: the frozen base with fresh experts and routers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from router_engine.model.loader import check_supported
from training.moa.model import MoaModel
from training.moa.plan import moa_manifest, moe_lora_manifest, shape_of
from training.moa.router import RouterTraining
from training.settings import MoaSettings, MoeLoraSettings, RunSettings


def frozen_base(settings: RunSettings) -> Any:
    """The base in `dtype` on `device`; raises UnsupportedModelError for what isn't served."""
    base = AutoModelForCausalLM.from_pretrained(
        settings.base, dtype=getattr(torch, settings.dtype), trust_remote_code=False
    ).to(settings.device)
    check_supported(base.config)
    return base


def moa_model(settings: RunSettings, moa: MoaSettings) -> MoaModel:
    """MoA as it begins."""
    base = frozen_base(settings)
    manifest = moa_manifest(shape_of(settings.base_name, base), settings.lora, moa)
    training = RouterTraining(
        threshold="straight_through" if moa.threshold == "straight_through" else "frozen",
        temperature=moa.temperature,
    )
    return MoaModel(base, manifest, training, settings.lora.dropout)


def moe_lora_model(settings: RunSettings, moe: MoeLoraSettings) -> MoaModel:
    """A homogeneous mixture of LoRA as it begins."""
    base = frozen_base(settings)
    manifest = moe_lora_manifest(shape_of(settings.base_name, base), settings.lora, moe)
    return MoaModel(base, manifest, dropout=settings.lora.dropout)
