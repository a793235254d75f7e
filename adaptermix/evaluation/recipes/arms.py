"""The arms that are compared: recipes of about equal served (AdaMix) or trained (MoA) size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from adaptermix.bench.errors import BenchmarkError
from adaptermix.training.recipes.adamix import adamix_recipe
from adaptermix.training.recipes.lora import lora_recipe
from adaptermix.training.recipes.moa import moa_recipe, moe_lora_recipe
from adaptermix.training.run import Recipe
from adaptermix.training.settings import AdamixSettings, LoraSettings, MoaSettings, MoeLoraSettings

ExperimentName = Literal["adamix", "moa"]

LORA = LoraSettings(rank=8, alpha=16)
SIZE = 26  # of a bottleneck: on the default base 916,620 parameters, LoRA of rank 8 has 921,600
_COPIES = AdamixSettings(draws=0)  # 4, B shared, consistency 100: as published for texts
_BOTTLENECKS = replace(_COPIES, kind="bottleneck", size=SIZE)
# LoRA, a bottleneck beside the feed-forward module and a prompt in each layer, a linear router;
# ranks and sizes of the other arms bring them to about as many trained parameters, 1.1 million.
_MOA = MoaSettings(parallel=14, prompt=4, router_factor=0)
_SPARSE = replace(_MOA, variant="sparse")


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


def _lora(rank: int) -> LoraSettings:
    return LoraSettings(rank=rank, alpha=2 * rank)


def _moa(name: str, about: str, settings: MoaSettings, rank: int = 4) -> Arm:
    return Arm(name, about, lambda: moa_recipe(settings), _lora(rank))


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
    "moa": Experiment(
        "moa",
        ("math", "commonsense"),
        _named(
            Arm("lora", "one LoRA of rank 10", lora_recipe, _lora(10)),
            Arm(
                "moe-lora",
                "2 of 3 LoRA of rank 3 at every target",
                lambda: moe_lora_recipe(MoeLoraSettings(experts=3, top_k=2)),
                _lora(3),
            ),
            _moa("moa-soft", "LoRA, bottleneck, prompt; linear router", _MOA),
            _moa("moa-sparse", "gates under a frozen threshold are 0", _SPARSE),
            _moa(
                "moa-sparse-trained",
                "the threshold learns straight through",
                replace(_SPARSE, threshold="straight_through"),
            ),
            _moa(
                "moa-soft-swiglu",
                "SwiGLU router, smaller experts",
                replace(_MOA, router_factor=2, parallel=9),
                rank=3,
            ),
            _moa("moa-instance", "one gate a prompt", replace(_MOA, variant="instance")),
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
