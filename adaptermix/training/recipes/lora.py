"""Plain LoRA on PEFT: a base model and rows in, an adapter folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptermix.training.loop import Losses, StepReport
from adaptermix.training.lora_model import lora_model, save_lora
from adaptermix.training.loss import Batch, completion_nll, mean_over_targets
from adaptermix.training.run import Outcome, Recipe, run_recipe
from adaptermix.training.settings import RunSettings


def train_lora(
    settings: RunSettings,
    out: Path,
    *,
    checkpoint_every: int = 50,
    restart: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Outcome:
    """Train one LoRA adapter and write it to `out`, in the frame of `run_recipe`."""
    return run_recipe(
        lora_recipe(),
        settings,
        out,
        checkpoint_every=checkpoint_every,
        restart=restart,
        on_step=on_step,
    )


def lora_recipe() -> Recipe:
    """The recipe of `train_lora`."""
    return Recipe("train lora", {}, _build)


@dataclass(frozen=True, slots=True)
class _LoraTrainee:
    model: Any
    settings: RunSettings
    generators: tuple[torch.Generator, ...] = ()

    def losses(self, batch: Batch) -> Losses:
        loss = mean_over_targets(completion_nll(self.model, batch), batch.labels)
        return Losses(loss, {"loss": loss})

    def finish(self, out: Path, dev_nll: Callable[[], float | None]) -> Mapping[str, str]:
        return {}

    def save(self, out: Path) -> None:
        save_lora(self.model, out, self.settings)


def _build(settings: RunSettings) -> _LoraTrainee:
    return _LoraTrainee(lora_model(settings), settings)
