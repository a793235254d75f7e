"""The frame of every recipe's run: rows in, an adapter folder with card, curves and texts out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from adaptermix.training import checkpoint
from adaptermix.training.base import check_base
from adaptermix.training.card import Described, describe_lora, write_card
from adaptermix.training.data import Example, Split, plan_batches, read_rows, split_rows, tokenize
from adaptermix.training.loop import Learner, Loop, StepReport
from adaptermix.training.loss import nll_per_row
from adaptermix.training.plot import plot_losses
from adaptermix.training.settings import RunSettings
from router_engine.model.tokenizer import read_tokenizer


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run. Dev values are nats per completion token, end-of-text included."""

    train_rows: int
    dev_rows: int
    left_out: int  # rows longer than max_length
    steps: int
    tokens: int
    seconds: float
    dev_before: float | None
    dev_after: float | None
    curves: Mapping[str, list[float]]  # of every step
    notes: Mapping[str, str]  # what only this recipe has to say

    @property
    def losses(self) -> list[float]:
        """Nats per completion token of every step's batch."""
        return self.curves["loss"]


class Trainee(Learner, Protocol):
    """A model that a recipe trains, from the first step to the folder."""

    def finish(self, out: Path, dev_nll: Callable[[], float | None]) -> Mapping[str, str]:
        """After the last step: leave in `model` what will be served; returns `Outcome.notes`."""

    def save(self, out: Path) -> None:
        """Write the adapter's own files."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kind of training."""

    command: str  # as the card calls it
    identity: Mapping[str, Any]  # plain values that the result depends on beside RunSettings
    build: Callable[[RunSettings], Trainee]  # under the run's seed
    describe: Callable[[RunSettings], Described] = describe_lora  # for the card


def run_recipe(
    recipe: Recipe,
    settings: RunSettings,
    out: Path,
    *,
    checkpoint_every: int,
    restart: bool,
    on_step: Callable[[StepReport], None],
) -> Outcome:
    """Train and write `out`: adapter, card, loss curves, sample texts.

    Goes on from the checkpoint in `out` where there is one, unless `restart`. Equal settings give
    equal adapters on one machine; the caller's random state is left as it was.
    """
    check_base(settings.base, settings.revision)
    out.mkdir(parents=True, exist_ok=True)
    if restart:
        checkpoint.remove(out)
    data, seed = settings.data, settings.loop.seed
    rows = [row for path in settings.files for row in read_rows(path)]
    split = split_rows(rows, dev_rows=data.dev_rows, max_rows=data.max_rows, seed=seed)
    tokenizer = read_tokenizer(settings.base, settings.revision)
    examples, left_out = tokenize(split.train, tokenizer, data.max_length)
    dev, dev_left_out = tokenize(split.dev, tokenizer, data.max_length)
    plan = plan_batches(
        [len(example.tokens) for example in examples],
        batch_tokens=data.batch_tokens,
        epochs=data.epochs,
        seed=seed,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainee = recipe.build(settings)
        identity = {**_identity(settings, split), **recipe.identity}
        loop = Loop(trainee, plan, settings.loop, directory=out, identity=identity)
        if not loop.restore():
            loop.dev_before = _mean_nll(trainee.model, dev, settings)
        loop.run(examples, checkpoint_every=checkpoint_every, on_step=on_step)
        notes = trainee.finish(out, lambda: _mean_nll(trainee.model, dev, settings))
        dev_after = _mean_nll(trainee.model, dev, settings)
    outcome = Outcome(
        train_rows=len(examples),
        dev_rows=len(dev),
        left_out=left_out + dev_left_out,
        steps=len(plan),
        tokens=data.epochs * sum(len(example.tokens) for example in examples),
        seconds=loop.seconds,
        dev_before=loop.dev_before,
        dev_after=dev_after,
        curves=loop.curves,
        notes=notes,
    )
    trainee.save(out)
    plot_losses(outcome.curves, out / "loss.png")
    write_card(out, settings, outcome, recipe.command, recipe.describe(settings))
    _write_texts(out, split, data.sample_texts)
    checkpoint.remove(out)
    return outcome


def _identity(settings: RunSettings, split: Split) -> dict[str, Any]:
    """Everything that the result depends on, as plain values; the rows by their digest."""
    values = {"base": settings.base_name, "revision": settings.revision, "dtype": settings.dtype}
    values |= {"rows": split.digest}
    values |= asdict(settings.lora) | asdict(settings.loop) | asdict(settings.data)
    return values | {"targets": list(settings.lora.targets)}


def _mean_nll(model: Any, examples: Sequence[Example], settings: RunSettings) -> float | None:
    """Nats per completion token over `examples`, None where there are none."""
    sums, counts = nll_per_row(
        model,
        examples,
        batch_tokens=settings.data.batch_tokens,
        device=torch.device(settings.device),
    )
    return sum(sums) / sum(counts) if counts else None


def _write_texts(out: Path, split: Split, count: int) -> None:
    texts = [row.prompt + row.completion for row in split.train[:count]]
    if texts:
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (out / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
