"""One run, in its own process: rows, training, and what the trained model does on test rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from adaptermix.bench.machine import describe_machine, describe_software
from adaptermix.evaluation.recipes.arms import Arm, experiment_named
from adaptermix.evaluation.recipes.harness import Place, TrainingJob
from adaptermix.evaluation.recipes.measure import answers, draws_nll, row_nll
from adaptermix.evaluation.recipes.tasks import TASKS, TestRow, task_rows, within_budget
from adaptermix.evaluation.settings import ExperimentSizes
from adaptermix.training.base import padding_tokenizer
from adaptermix.training.data import Row, tokenize
from adaptermix.training.loop import Losses
from adaptermix.training.loss import Batch
from adaptermix.training.recipes.adamix import AdamixTrainee
from adaptermix.training.run import Trainee, run_recipe
from adaptermix.training.settings import DataSettings, LoopSettings, RunSettings
from adapters_store.tensor_header import read_header

_TEST_SEED = 0  # all runs are measured on the same rows
_LAST_STEPS = 10  # whose mean a curve's end is


def run(job: TrainingJob, place: Place) -> dict[str, Any]:
    """Train and measure; what the journal keeps."""
    arm, task = experiment_named(job.experiment).arms[job.arm], TASKS[job.task]
    tokenizer = padding_tokenizer(place.base)
    train = task_rows(task, place.data, "train", job.seed)
    sizes = job.sizes
    rows = within_budget(train, sizes.tokens, sizes.max_length, lambda row: _length(row, tokenizer))
    test = task_rows(task, place.data, "test", _TEST_SEED)[: sizes.nll_rows]
    watched = _Watched(sizes, test, tokenizer)
    recipe = arm.recipe()
    outcome = run_recipe(
        replace(recipe, build=lambda settings: watched.watch(recipe.build(settings))),
        _settings(job, place, arm, _write_rows(place.folder, rows)),
        place.folder / "adapter",
        checkpoint_every=0,
        restart=True,  # what an interrupted run has done would be missing in its seconds
        on_step=lambda report: None,
    )
    model = watched.model.eval()
    nll, weights = row_nll(model, [test_row.row for test_row in test], tokenizer)
    measured = answers(model, task, test[: sizes.answer_rows], tokenizer)
    return {
        "job": asdict(job),
        "about": arm.about,
        "train_rows": outcome.train_rows,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
        "cpu_seconds": round(watched.cpu_seconds, 1),
        "trained": watched.trained,
        "served": _stored(place.folder / "adapter" / "adapter_model.safetensors"),
        "ends": {name: _end(values) for name, values in outcome.curves.items()},
        "nll": nll,
        "weights": weights,
        "answers": measured,
        **watched.measured,
        "machine": describe_machine(),
        "software": describe_software(),
        "threads": torch.get_num_threads(),
    }


@dataclass(slots=True)
class _Watched:
    """A trainee whose copies are measured before they are merged."""

    sizes: ExperimentSizes
    test: Sequence[TestRow]
    tokenizer: Any
    trained: int = 0
    cpu_seconds: float = 0.0  # of training alone: other work on the machine doesn't count
    measured: dict[str, Any] = field(default_factory=dict)
    _trainee: Trainee | None = None

    def watch(self, trainee: Trainee) -> Trainee:
        learnt = (p.numel() for p in trainee.model.parameters() if p.requires_grad)
        self._trainee, self.trained = trainee, sum(learnt)
        self.cpu_seconds = -time.process_time()
        return self

    @property
    def trainee(self) -> Trainee:
        assert self._trainee is not None, "the recipe builds its trainee first"
        return self._trainee

    @property
    def model(self) -> Any:
        return self.trainee.model

    @property
    def generators(self) -> Sequence[torch.Generator]:
        return self.trainee.generators

    def losses(self, batch: Batch) -> Losses:
        return self.trainee.losses(batch)

    def finish(self, out: Path, dev_nll: Callable[[], float | None]) -> Mapping[str, str]:
        trainee = self.trainee
        self.cpu_seconds += time.process_time()
        if isinstance(trainee, AdamixTrainee) and trainee.adamix.copies > 1:
            sizes = self.sizes
            rows = [test_row.row for test_row in self.test[: sizes.draw_rows]]
            trainee.model.eval()
            draws, ensemble = draws_nll(trainee, rows, self.tokenizer, sizes.draws, sizes.ensemble)
            self.measured = {"draws": draws, "ensemble": ensemble}
        return trainee.finish(out, dev_nll)

    def save(self, out: Path) -> None:
        self.trainee.save(out)


def _settings(job: TrainingJob, place: Place, arm: Arm, rows: Path) -> RunSettings:
    sizes = job.sizes
    return RunSettings(
        base=place.base,
        base_name=job.base_name,
        files=(rows,),
        licence="that of the sets",
        data=DataSettings(
            max_length=sizes.max_length,
            dev_rows=0,
            batch_tokens=sizes.batch_tokens,
            epochs=arm.epochs,
            sample_texts=0,
        ),
        lora=arm.lora,
        loop=LoopSettings(seed=job.seed),
        dtype=sizes.dtype,
    )


def _length(row: Row, tokenizer: Any) -> int:
    [example], _ = tokenize([row], tokenizer, 1 << 30)
    return len(example.tokens)


def _write_rows(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def _stored(path: Path) -> int:
    """Numbers in a file of tensors."""
    return sum(prod(tensor.shape) for tensor in read_header(path).tensors.values())


def _end(values: Sequence[float]) -> float:
    last = values[-_LAST_STEPS:]
    return sum(last) / len(last)
