"""The optimizer loop: forward, backward, clip, step; resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import get_scheduler

from adaptermix.training import checkpoint
from adaptermix.training.data import Example
from adaptermix.training.loss import Batch, collate
from adaptermix.training.settings import LoopSettings


@dataclass(frozen=True, slots=True)
class StepReport:
    """A report of one optimizer step."""

    step: int
    num_steps: int
    losses: Mapping[str, float]  # of this batch, as the learner names them
    tokens: int  # tokens of this batch, padding left out


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one batch: what is minimised, and what is shown and kept as curves."""

    total: Tensor
    shown: Mapping[str, Tensor]


class Learner(Protocol):
    """A model under training, with its loss."""

    @property
    def model(self) -> Any:
        """The module; only trained parameters require a gradient in it."""

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """Generators that the learner draws from beside torch's global ones."""

    def losses(self, batch: Batch) -> Losses:
        """The forward passes of a step."""


class Loop:
    """One run over a plan of batches.

    `settings` identifies the run in its checkpoints; `directory` holds them. A run that was
    interrupted and resumed computes exactly what an uninterrupted one does.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Sequence[Sequence[int]],
        settings: LoopSettings,
        *,
        directory: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self._learner = learner
        self._plan = plan
        self._settings = settings
        self._directory = directory
        self._identity = identity
        self._trained = {
            name: parameter
            for name, parameter in learner.model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = get_scheduler(
            settings.schedule,
            self._optimizer,
            num_warmup_steps=round(settings.warmup_ratio * len(plan)),
            num_training_steps=len(plan),
        )
        self.step = 0
        self.curves: dict[str, list[float]] = {}
        self.dev_before: float | None = None
        self.seconds = 0.0

    def restore(self) -> bool:
        """Go to where the checkpoint stands; False where there is none."""
        state = checkpoint.load(self._directory, self._identity)
        if state is None:
            return False
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state.adapter[name])
        self._optimizer.load_state_dict(dict(state.optimizer))
        self._schedule.load_state_dict(dict(state.schedule))
        torch.set_rng_state(state.random_state)
        if state.device_random_states:
            torch.cuda.set_rng_state_all(state.device_random_states)
        states = zip(self._learner.generators, state.generator_states, strict=True)
        for generator, generator_state in states:
            generator.set_state(generator_state)
        self.step = state.step
        self.curves = {name: list(values) for name, values in state.curves.items()}
        self.dev_before = state.dev_before
        self.seconds = state.seconds
        return True

    def run(
        self,
        examples: Sequence[Example],
        *,
        checkpoint_every: int,
        on_step: Callable[[StepReport], None],
    ) -> None:
        """Walk the rest of the plan; a checkpoint each `checkpoint_every` steps (0: none)."""
        self._learner.model.train()
        parameters = list(self._trained.values())
        while self.step < len(self._plan):
            started = time.monotonic()
            chosen = [examples[index] for index in self._plan[self.step]]
            losses = self._learner.losses(collate(chosen, parameters[0].device))
            torch.autograd.backward(losses.total)
            torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.step += 1
            shown = {name: loss.item() for name, loss in losses.shown.items()}
            for name, value in shown.items():
                self.curves.setdefault(name, []).append(value)
            self.seconds += time.monotonic() - started
            if checkpoint_every and self.step % checkpoint_every == 0:
                self._save()
            tokens = sum(len(example.tokens) for example in chosen)
            on_step(StepReport(self.step, len(self._plan), shown, tokens))

    def _save(self) -> None:
        checkpoint.save(
            self._directory,
            checkpoint.Checkpoint(
                settings=dict(self._identity),
                step=self.step,
                adapter={name: parameter.detach() for name, parameter in self._trained.items()},
                optimizer=self._optimizer.state_dict(),
                schedule=self._schedule.state_dict(),
                random_state=torch.get_rng_state(),
                device_random_states=torch.cuda.get_rng_state_all(),
                generator_states=[g.get_state() for g in self._learner.generators],
                curves=self.curves,
                dev_before=self.dev_before,
                seconds=self.seconds,
            ),
        )
