"""MoA's port to Hugging Face transformers -> our own format.

A folder holds adapter_config.json and adapter_model.bin, a pickle that no store opens: whoever
opens one brings its tensors here. The config is no guide to the tensors: its peft_type is SOFTMOA
for sparse adapters too, and rank, alpha and targets are not what the model's code used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from adaptermix.training.importing.moa.building import Convention, build, refuse
from adaptermix.training.importing.moa.keys import (
    LINEAR,
    PARALLEL,
    PROMPT,
    SWIGLU,
    THRESHOLD,
    Array,
    MoaLayer,
    Naming,
    sort_keys,
)
from adapters_store.formats.config_files import parse_flat_config
from adapters_store.formats.native import NativeAdapter
from adapters_store.types import Problem

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.bin"
GAMMA_MAX = 0.5  # hard-coded in the published models, and saved nowhere

_NAMING = Naming(
    prefix="base_model.model.model.layers.",
    parts={
        **{part: f"self_attn.lora_{part}." for part in ("Q", "K", "V", "O")},
        "DOWN": "mlp.lora_down.",
        PROMPT: "self_attn.prompt.",
        PARALLEL: "p_adapter.",
        LINEAR: "adapter_type_router.",
        SWIGLU: "adapter_type_router.",
        THRESHOLD: "adapter_threshold_fn.",
    },
)


class _Config(BaseModel):
    """Every key that the port writes; those that say anything change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    peft_type: Literal["SOFTMOA"]
    base_model_name_or_path: str | None = None
    bias: Literal["none"] = "none"
    task_type: Literal["CAUSAL_LM"] | None = None
    lora_rank: Any = None
    lora_alpha: Any = None
    target_modules: Any = None
    lora_dropout: Any = None
    init_lora_weights: Any = None
    inference_mode: Any = None
    auto_mapping: Any = None
    revision: Any = None


def convert(
    config: Mapping[str, Any], state: Mapping[str, Array], gamma_max: float | None
) -> NativeAdapter:
    """The adapter that a folder's config and tensors are.

    The scale of every LoRA is 1, ranks are those of the tensors, the router reads what the layer's
    first norm puts out, and the adapter is sparse where it has threshold nets; `gamma_max` is then
    the highest threshold, GAMMA_MAX unless given. Raises InvalidAdapterError with every problem.
    """
    said = parse_flat_config(_Config, config, CONFIG_FILE)
    keys = sort_keys(state, _NAMING)
    refuse(keys.problems(TENSOR_FILE))
    layers = list(keys.layers.values())
    is_sparse = any(THRESHOLD in layer.parts for layer in layers)
    refuse([*_disagreements(layers), *_gamma_problems(gamma_max, is_sparse=is_sparse)])
    threshold = (GAMMA_MAX if gamma_max is None else gamma_max) if is_sparse else None
    made = build(keys, Convention(1.0, "post_norm", threshold), said.base_model_name_or_path)
    return NativeAdapter(made.manifest, made.tensors, tuple(_notes(said, made, threshold)))


def _disagreements(layers: list[MoaLayer]) -> Iterator[Problem]:
    """The port makes all layers alike."""
    first = layers[0]
    for layer in layers[1:]:
        if layer.parts.keys() != first.parts.keys():
            yield Problem(
                f"{_NAMING.prefix}{layer.index}",
                f"has {', '.join(sorted(layer.parts))}, but layer 0 has "
                f"{', '.join(sorted(first.parts))}: all layers must have the same",
            )


def _gamma_problems(gamma_max: float | None, *, is_sparse: bool) -> Iterator[Problem]:
    if gamma_max is None:
        return
    if not is_sparse:
        yield Problem(
            "--gamma-max",
            f"is {gamma_max:g}, but the adapter is soft (no adapter_threshold_fn): leave it out",
        )
    elif not 0 <= gamma_max <= 1:
        yield Problem("--gamma-max", f"is {gamma_max:g}: give 0 to 1, {GAMMA_MAX} as published")


def _notes(said: _Config, made: NativeAdapter, threshold: float | None) -> Iterator[str]:
    ranks = sorted({expert.rank for expert in made.manifest.lora_experts})
    if said.lora_rank is not None and ranks != [said.lora_rank]:
        yield (
            f"the config says rank {said.lora_rank}, the tensors have "
            f"{', '.join(map(str, ranks)) or 'no LoRA'}: the tensors are right"
        )
    if said.lora_alpha != said.lora_rank:
        yield (
            f"the config's lora_alpha {said.lora_alpha} has no effect: the model's code takes "
            "alpha = rank, which is the scale 1"
        )
    if threshold is not None:
        yield f"thresholds are at most {threshold:g}, which the folder does not say"
