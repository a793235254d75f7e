"""The LoRA variant of an AdaMix checkpoint of GPT-2 -> LoRA on the fused c_attn, as arrays.

AdaMix (https://arxiv.org/abs/2205.12410) trains M copies ("experts") of LoRA's A and B in each
layer and serves their average: w = softmax(score), A = sum_e w_e A_e, B = sum_e w_e B_e, each layer
by itself, A and B apart. A side that all experts share has one copy. This is no format of uploads:
the checkpoints are pickles, which no store opens. Whoever opens one brings its tensors here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.training.importing.adamix.copies import average, stacked, weights_of
from adaptermix.training.importing.adamix.keys import AdamixLayer, sort_keys
from adaptermix.training.importing.adamix.state import STATE, check_layers, refusal
from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.formats.native import FORMAT, NativeAdapter
from adapters_store.problems import name_list
from adapters_store.types import AdapterManifest

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class AdamixLora:
    """The LoRA variant: copies of A [2r, d] and B [2d, r] in each layer.

    Rows 0..r-1 of A and 0..d-1 of B serve q, the others v; k has no LoRA.
    """

    rank: int  # r, of q and of v
    hidden_size: int  # d
    copies_a: int  # M, or 1 where all experts share A
    copies_b: int
    weighted: bool  # whether some scores differ, so that the average isn't the mean
    kept: tuple[AdamixLayer, ...]

    @property
    def layers(self) -> tuple[tuple[Array, Array], ...]:
        """A and B of each layer with their experts averaged, in float32."""
        return tuple(
            (average(layer.a, layer.weights), average(layer.b, layer.weights))
            for layer in self.kept
        )

    def peft_tensors(self) -> dict[str, Array]:
        """The average as LoRA of rank 2r on each c_attn, by PEFT's keys: A [2r, d], B [3d, 2r]."""
        tensors: dict[str, Array] = {}
        for layer, (a, b) in zip(self.kept, self.layers, strict=True):
            module = f"base_model.model.{layer.where}"
            tensors[f"{module}.lora_A.weight"] = a
            tensors[f"{module}.lora_B.weight"] = _fused(b)
        return tensors

    def peft_config(self, alpha: float) -> dict[str, Any]:
        """adapter_config.json. The scale stays alpha / r, as 2 alpha / 2r."""
        doubled = 2 * alpha
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,  # the checkpoint doesn't say
            "r": 2 * self.rank,
            "lora_alpha": int(doubled) if doubled.is_integer() else doubled,
            "lora_dropout": 0.0,
            "target_modules": ["c_attn"],
            "fan_in_fan_out": True,
            "bias": "none",
            "inference_mode": True,
        }

    def native(self, alpha: float) -> NativeAdapter:
        """The same LoRA with its copies kept apart: A [M, 2r, d], B [M, 3d, 2r], 1 where shared."""
        experts, tensors = [], {}
        for layer in self.kept:
            expert = LoraExpertSpec(
                module=layer.where,
                rank=2 * self.rank,
                scale=alpha / self.rank,
                in_features=self.hidden_size,
                out_features=3 * self.hidden_size,
                tensor_a=f"{layer.where}.lora_A",
                tensor_b=f"{layer.where}.lora_B",
                copies=Copies(
                    weights_of(layer.a, layer.weights), weights_of(layer.b, layer.weights)
                ),
            )
            experts.append(expert)
            tensors[expert.tensor_a] = stacked(layer.a)
            tensors[expert.tensor_b] = _fused(stacked(layer.b))
        return NativeAdapter(AdapterManifest(FORMAT, tuple(experts)), tensors)


def _fused(b: Array) -> Array:
    """B [..., 2d, r] of q and v as one on q, k and v, [..., 3d, 2r]: 0 but for two blocks.

    [0:d, 0:r] is that of q, [2d:3d, r:2r] that of v.
    """
    rows, r = b.shape[-2:]
    d = rows // 2
    fused = np.zeros((*b.shape[:-2], 3 * d, 2 * r), dtype=np.float32)
    fused[..., :d, :r] = b[..., :d, :]
    fused[..., 2 * d :, r:] = b[..., d:, :]
    return fused


def checked_alpha(alpha: float | None) -> float:
    """The numerator of the scale, which no checkpoint holds. Raises InvalidAdapterError."""
    if alpha is None:
        raise refusal(
            "--alpha",
            "is missing: the scale is alpha / r, and the checkpoint does not hold alpha. Give what "
            "it was trained with: 32 in the published scripts, 128 where the trainer's own "
            "--lora_alpha was left at its default",
        )
    if not math.isfinite(alpha) or alpha <= 0:
        raise refusal("--alpha", f"is {alpha:g}: give a number above 0, 32 in the published runs")
    return float(alpha)


def read_lora(state: Mapping[str, Array]) -> AdamixLora:
    """The LoRA of a checkpoint's tensors, named as `state_of` gives them.

    Base weights beside them, as in full checkpoints, are left out once their shapes agree with the
    LoRA's. Values that aren't finite stay: the store refuses them. Raises InvalidAdapterError with
    every problem found: unknown tensors, missing layers or experts, shapes, layers that disagree.
    """
    keys = sort_keys(state)
    if not keys.layers:
        raise refusal(
            STATE,
            "holds no AdaMix LoRA (transformer.h.<i>.attn.c_attn.experts_lora_A.<e> and _B.<e>) "
            f"and no bottlenecks of AdaMix; it holds {name_list(state)}",
        )
    check_layers(keys.layers, keys.base, "LoRA", "experts_lora_A and experts_lora_B")
    ordered = [keys.layers[index] for index in sorted(keys.layers)]
    first = ordered[0]
    return AdamixLora(
        rank=first.rank,
        hidden_size=first.hidden_size,
        copies_a=len(first.a),
        copies_b=len(first.b),
        weighted=any(np.ptp(layer.weights) > 0 for layer in ordered),
        kept=tuple(ordered),
    )
