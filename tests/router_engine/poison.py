"""Adapters whose numbers overflow, and engines that say where in their cache such numbers lie.

Every stored number is finite, so the store takes them; inf and NaN arise as they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.expert_adapters import (
    INSTANCE,
    LORA,
    MOE_LORA,
    PARALLEL,
    PROMPT,
    SERIAL,
    SPARSE,
    Layers,
    edited,
    make_expert_folder,
)

HUGE = 3e38  # fits fp32 and bf16; twice as much does not
COPIES = replace(PARALLEL, copies=4)


@dataclass(frozen=True, slots=True)
class Poison:
    """An adapter of this kind in which tensors whose key ends so hold one number throughout."""

    layers: Layers
    values: Mapping[str, float]

    def folder(self, directory: Path, seed: int, family: str = "llama") -> Path:
        """Written below `directory`."""
        healthy = make_expert_folder(directory / "healthy", self.layers, family=family, seed=seed)
        return edited(healthy, directory / "poison", self.values)


POISONS: dict[str, Poison] = {
    "A": Poison(LORA, {".a": HUGE}),
    "A, very negative": Poison(LORA, {".a": -HUGE}),
    "B, times its scale": Poison(LORA, {".b": HUGE}),
    "scale": Poison(replace(LORA, scale=HUGE), {".b": 2.0}),
    "A of keys": Poison(Layers(("k_proj",)), {".a": HUGE}),
    "way down": Poison(PARALLEL, {".down": HUGE}),
    "way down, under relu": Poison(replace(PARALLEL, activation="relu"), {".down": -HUGE}),
    "way up, times its scale": Poison(PARALLEL, {".up": HUGE}),
    "bias on the way up, times its scale": Poison(PARALLEL, {".u": HUGE}),
    "serial": Poison(SERIAL, {".down": HUGE}),
    "copies": Poison(COPIES, {".down": HUGE}),
    "prompt": Poison(PROMPT, {".prompt": HUGE}),
    "head gates of a prompt": Poison(PROMPT, {".prompt_gate": HUGE}),
    "router": Poison(MOE_LORA, {".router.weight": HUGE}),
    "router with a threshold": Poison(SPARSE, {".w1.weight": HUGE, ".w3.weight": HUGE}),
    "router of whole prompts": Poison(INSTANCE, {".w1.weight": HUGE, ".w3.weight": HUGE}),
    "gated": Poison(SPARSE, {".b": HUGE, ".down": HUGE}),
}
