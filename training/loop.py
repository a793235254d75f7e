"""The optimizer loop: forward, backward, clip, step; resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import get_scheduler

from training import checkpoint
from training.data import Example
from training.loss import collate, completion_nll
from training.settings import LoopSettings


@dataclass(frozen=True, slots=True)
class StepReport:
    """Told after each optimizer step."""

    step: int
    num_steps: int
    loss: float  # nats per completion token of this batch
    tokens: int  # tokens of this batch, padding left out


class Loop:
    """One run over a plan of batches.

    `settings` identifies the run in its checkpoints; `directory` holds them. A run that was
    interrupted and resumed computes exactly what an uninterrupted one does.
    """

    def __init__(
        self,
        model: Any,
        plan: Sequence[Sequence[int]],
        settings: LoopSettings,
        *,
        directory: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._plan = plan
        self._settings = settings
        self._directory = directory
        self._identity = identity
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = get_scheduler(
            settings.schedule,
            self._optimizer,
            num_warmup_steps=round(settings.warmup_ratio * len(plan)),
            num_training_steps=len(plan),
        )
        self.step = 0
        self.losses: list[float] = []
        self.dev_before: float | None = None
        self.seconds = 0.0

    def restore(self) -> bool:
        """Go to where the checkpoint stands; False where there is none."""
        state = checkpoint.load(self._directory, self._identity)
        if state is None:
            return False
        set_peft_model_state_dict(self._model, dict(state.adapter))
        self._optimizer.load_state_dict(dict(state.optimizer))
        self._schedule.load_state_dict(dict(state.schedule))
        torch.set_rng_state(state.random_state)
        if state.device_random_states:
            torch.cuda.set_rng_state_all(state.device_random_states)
        self.step = state.step
        self.losses = list(state.losses)
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
        self._model.train()
        device = self._parameters[0].device
        while self.step < len(self._plan):
            started = time.monotonic()
            chosen = [examples[index] for index in self._plan[self.step]]
            batch = collate(chosen, device)
            nll = completion_nll(self._model, batch)
            loss = nll.sum() / (batch.labels != -100).sum()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.losses.append(loss.item())
            self.seconds += time.monotonic() - started
            if checkpoint_every and self.step % checkpoint_every == 0:
                self._save()
            tokens = sum(len(example.tokens) for example in chosen)
            on_step(StepReport(self.step, len(self._plan), self.losses[-1], tokens))

    def _save(self) -> None:
        checkpoint.save(
            self._directory,
            checkpoint.Checkpoint(
                settings=dict(self._identity),
                step=self.step,
                adapter=get_peft_model_state_dict(self._model, save_embedding_layers=False),
                optimizer=self._optimizer.state_dict(),
                schedule=self._schedule.state_dict(),
                random_state=torch.get_rng_state(),
                device_random_states=torch.cuda.get_rng_state_all(),
                losses=self.losses,
                dev_before=self.dev_before,
                seconds=self.seconds,
            ),
        )
