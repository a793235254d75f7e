"""What is compared: recipes of about equal served (AdaMix) or trained (MoA) parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from benchmarks.errors import BenchmarkError
from training.recipes.adamix import adamix_recipe
from training.recipes.lora import lora_recipe
from training.run import Recipe
from training.settings import AdamixSettings, LoraSettings

ExperimentName = Literal["adamix", "moa"]

LORA = LoraSettings(rank=8, alpha=16)
SIZE = 26  # of a bottleneck: on the default base 916,620 parameters, LoRA of rank 8 has 921,600
_COPIES = AdamixSettings(draws=0)  # 4, B shared, consistency 100: as published for texts
_BOTTLENECKS = replace(_COPIES, kind="bottleneck", size=SIZE)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train."""

    name: str
    about: str
    recipe: Callable[[], Recipe]
    lora: LoraSettings = LORA
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms on tasks."""

    name: ExperimentName
    tasks: tuple[str, ...]
    arms: Mapping[str, Arm]


def _adamix(name: str, about: str, settings: AdamixSettings) -> Arm:
    lora = LORA if settings.kind == "lora" else LoraSettings()
    return Arm(name, about, lambda: adamix_recipe(settings), lora)


def _named(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


EXPERIMENTS: Mapping[str, Experiment] = {
    "adamix": Experiment(
        "adamix",
        ("e2e", "arc_easy"),
        _named(
            Arm("lora", "one LoRA", lora_recipe),
            _adamix("adamix-lora", "4 A, B shared, consistency 100", _COPIES),
            _adamix("adamix-lora-c0", "without consistency", replace(_COPIES, consistency=0)),
            _adamix(
                "bottleneck",
                "one bottleneck",
                replace(_BOTTLENECKS, copies=1, consistency=0),
            ),
            _adamix("adamix-bottleneck", "4 ways down, up shared, consistency 100", _BOTTLENECKS),
            _adamix(
                "adamix-bottleneck-c0", "without consistency", replace(_BOTTLENECKS, consistency=0)
            ),
            _adamix("adamix-lora-c10", "consistency 10", replace(_COPIES, consistency=10)),
            Arm(
                "lora-twice",
                "one LoRA, each row twice: consistency's compute",
                lora_recipe,
                epochs=2,
            ),
        ),
    ),
}


def experiment_named(name: str) -> Experiment:
    """One of EXPERIMENTS; raises BenchmarkError naming them."""
    if name not in EXPERIMENTS:
        raise BenchmarkError(f"experiment {name!r} is not known: use {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def names_of() -> tuple[str, ...]:
    """All experiments."""
    return get_args(ExperimentName)
