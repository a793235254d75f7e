"""AdaMix on LoRA: copies drawn at random while training, their mean as an ordinary adapter.

Wang et al., "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.adamix.copies import copies_of, make_copies, merge_copies
from training.adamix.draws import Draws, seeded
from training.loop import Losses, StepReport
from training.lora_model import lora_model, save_lora
from training.loss import Batch, completion_logits, mean_over_targets, nll_of, symmetric_kl
from training.run import Outcome, Recipe, run_recipe
from training.settings import AdamixSettings, RunSettings

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
    """Train copies of one LoRA adapter and write their mean to `out`, as `run_recipe` says.

    L = L_task(p) + consistency * KLsym(p, q), where p and q are two passes over the same batch
    under different draws, KLsym over the completion tokens only (`symmetric_kl`).
    """
    depends_on = {name: v for name, v in asdict(adamix).items() if name not in _AFTERWARDS}

    def build(settings: RunSettings) -> AdamixPupil:
        draws = Draws(adamix.routing, settings.loop.seed)
        model = lora_model(settings)
        make_copies(model, adamix, draws)
        return AdamixPupil(model, draws, adamix, settings)

    return run_recipe(
        Recipe("train adamix", depends_on, build),
        settings,
        out,
        checkpoint_every=checkpoint_every,
        restart=restart,
        on_step=on_step,
    )


def copies_file(out: Path) -> Path:
    """Where the copies of the adapter in `out` are kept: beside it, since it must stay a folder
    that the store takes."""
    return out.resolve().with_name(f"{out.resolve().name}.copies.safetensors")


@dataclass(frozen=True, slots=True)
class AdamixPupil:
    """A PEFT model whose A and B are copies under `draws`."""

    model: Any
    draws: Draws
    adamix: AdamixSettings
    settings: RunSettings

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
            described = {name: str(value) for name, value in asdict(self.adamix).items()}
            save_file(copies_of(self.model), copies_file(out), metadata=described)
        merge_copies(self.model)
        return {"AdaMix": _described(self.adamix), "random draws": _spread(drawn)}

    def nll_of_draws(self, dev_nll: Callable[[], float | None]) -> list[float]:
        """Dev values while copies are drawn as in training, without dropout; seeds 0, 1, ..."""
        values = []
        for seed in range(self.adamix.draws):
            with self.draws.random(seeded(seed)):
                values.append(dev_nll())
        return [value for value in values if value is not None]

    def save(self, out: Path) -> None:
        save_lora(self.model, out, self.settings)


def _described(adamix: AdamixSettings) -> str:
    counts = {
        side: 1 if adamix.share == name else adamix.copies
        for side, name in (("A", "down"), ("B", "up"))
    }
    return (
        f"mean of {counts['A']} A and {counts['B']} B, drawn for each {adamix.routing}, "
        f"{adamix.init} initial weights, consistency {adamix.consistency:g}"
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"dev loss {mean:.4f} in the mean of {len(values)}, {low:.4f} to {high:.4f}"
