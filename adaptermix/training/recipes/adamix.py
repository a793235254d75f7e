"""AdaMix: copies drawn at random while training, their mean as an ordinary adapter.

Wang et al., "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from adaptermix.training.adamix.bottlenecks import CopiedBottlenecks
from adaptermix.training.adamix.draws import Draws, seeded
from adaptermix.training.adamix.pairs import Pairs
from adaptermix.training.card import Described
from adaptermix.training.errors import TrainingError
from adaptermix.training.loop import Losses, StepReport
from adaptermix.training.loss import (
    Batch,
    completion_logits,
    mean_over_targets,
    nll_of,
    symmetric_kl,
)
from adaptermix.training.run import Outcome, Recipe, run_recipe
from adaptermix.training.settings import AdamixSettings, LoraSettings, RunSettings

_AFTERWARDS = ("draws", "keep_copies")  # settings that training itself does not depend on


def train_adamix(
    settings: RunSettings,
    out: Path,
    *,
    adamix: AdamixSettings,
    checkpoint_every: int = 50,
    restart: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Outcome:
    """Train copies of one adapter and write their mean to `out`, as `run_recipe` says.

    L = L_task(p) + consistency * KLsym(p, q), where p and q are two passes over the same batch
    under different draws, KLsym over the completion tokens only (`symmetric_kl`).
    """
    return run_recipe(
        adamix_recipe(adamix),
        settings,
        out,
        checkpoint_every=checkpoint_every,
        restart=restart,
        on_step=on_step,
    )


def adamix_recipe(adamix: AdamixSettings) -> Recipe:
    """The recipe of `train_adamix`."""
    depends_on = {name: v for name, v in asdict(adamix).items() if name not in _AFTERWARDS}

    def build(settings: RunSettings) -> AdamixTrainee:
        draws = Draws(adamix.routing, settings.loop.seed)
        if adamix.kind == "lora":
            return AdamixTrainee(Pairs(settings, adamix, draws), draws, adamix)
        _require_no_lora(settings.lora)
        return AdamixTrainee(CopiedBottlenecks(settings, adamix, draws), draws, adamix)

    def describe(settings: RunSettings) -> Described:
        if adamix.kind == "lora":
            return Pairs.describe(settings)
        return CopiedBottlenecks.describe(adamix)

    return Recipe("train adamix", depends_on, build, describe)


def copies_folder(out: Path) -> Path:
    """The folder of the copies of the adapter in `out`, an adapter of their own."""
    return out.resolve().with_name(f"{out.resolve().name}.copies")


def _require_no_lora(lora: LoraSettings) -> None:
    """Raises TrainingError for a setting of LoRA's, which a bottleneck has no use for."""
    for each in fields(LoraSettings):
        value = getattr(lora, each.name)
        if value != each.default:
            raise TrainingError(
                f"{each.name} is {value!r}, but a bottleneck has none: leave it out, or use the "
                "kind lora"
            )


@dataclass(frozen=True, slots=True)
class AdamixTrainee:
    """A model with copies under `draws`."""

    experts: Pairs | CopiedBottlenecks
    draws: Draws
    adamix: AdamixSettings

    @property
    def model(self) -> Any:
        return self.experts.model

    @property
    def generators(self) -> Sequence[torch.Generator]:
        return (self.draws.generator,)

    def losses(self, batch: Batch) -> Losses:
        """Two passes, or one where consistency is 0; the task's loss is of the first only."""
        with self.draws.random():
            first = completion_logits(self.model, batch)
            task = mean_over_targets(nll_of(first, batch.labels), batch.labels)
            if not self.adamix.consistency:
                return Losses(task, {"loss": task})
            second = completion_logits(self.model, batch)
        targets = batch.labels != -100
        apart = symmetric_kl(first[targets], second[targets])
        total = task + self.adamix.consistency * apart
        return Losses(total, {"loss": task, "consistency": apart})

    def finish(self, out: Path, dev_nll: Callable[[], float | None]) -> Mapping[str, str]:
        """Measure random draws, keep the copies if asked, and merge."""
        drawn = self.nll_of_draws(dev_nll)
        if self.adamix.keep_copies:
            self.experts.save_copies(copies_folder(out))
        self.experts.merge()
        return {"AdaMix": _described(self.adamix), "random draws": _spread(drawn)}

    def nll_of_draws(self, dev_nll: Callable[[], float | None]) -> list[float]:
        """Dev values while copies are drawn as in training, without dropout; seeds 0, 1, ..."""
        values = []
        for seed in range(self.adamix.draws):
            with self.draws.random(seeded(seed)):
                values.append(dev_nll())
        return [value for value in values if value is not None]

    def save(self, out: Path) -> None:
        self.experts.save(out)


def _described(adamix: AdamixSettings) -> str:
    down, up = (1 if adamix.share == side else adamix.copies for side in ("down", "up"))
    names = ("A", "B") if adamix.kind == "lora" else ("ways down", "ways up")
    init = "independent" if adamix.kind == "bottleneck" else adamix.init or "shared"
    return (
        f"mean of {down} {names[0]} and {up} {names[1]}, drawn for each {adamix.routing}, "
        f"{init} initial weights, consistency {adamix.consistency:g}"
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"dev loss {mean:.4f} in the mean of {len(values)}, {low:.4f} to {high:.4f}"
