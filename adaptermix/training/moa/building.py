"""The model of a run: the frozen base with fresh experts and routers."""

from __future__ import annotations

from typing import Any

from adaptermix.training.base import read_base
from adaptermix.training.moa.model import MoaModel
from adaptermix.training.moa.plan import moa_manifest, moe_lora_manifest, shape_of
from adaptermix.training.moa.router import GatingTraining
from adaptermix.training.settings import MoaSettings, MoeLoraSettings, RunSettings


def frozen_base(settings: RunSettings) -> Any:
    """The base in `dtype` on `device`; raises UnsupportedModelError for what isn't served."""
    return read_base(settings.base, settings.dtype, settings.device, settings.revision)


def moa_model(settings: RunSettings, moa: MoaSettings) -> MoaModel:
    """MoA as it begins."""
    base = frozen_base(settings)
    manifest = moa_manifest(shape_of(settings.base_name, base), settings.lora, moa)
    training = GatingTraining(
        threshold="straight_through" if moa.threshold == "straight_through" else "frozen",
        temperature=moa.temperature,
    )
    return MoaModel(base, manifest, training, settings.lora.dropout)


def moe_lora_model(settings: RunSettings, moe: MoeLoraSettings) -> MoaModel:
    """A homogeneous mixture of LoRA as it begins."""
    base = frozen_base(settings)
    manifest = moe_lora_manifest(shape_of(settings.base_name, base), settings.lora, moe)
    return MoaModel(base, manifest, dropout=settings.lora.dropout)
