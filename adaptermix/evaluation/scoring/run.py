"""Every system on every task: completion NLL, and what its answers score."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adaptermix.bench.report import row, table_head
from adaptermix.evaluation.intervals import difference, interval
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.models import BASE, Systems
from adaptermix.evaluation.scoring.tasks import Task
from adaptermix.training.data import Row
from adaptermix.training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """Numbers of test rows, drawn by `seed`: for the NLL, and the first of them for answers."""

    data: Path
    nll_rows: int = 150
    answer_rows: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("nll_rows", "answer_rows"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")


def provenance(base_name: str, dtype: str, settings: ScoringSettings) -> dict[str, Any]:
    """The origin of the results, as written beside them."""
    return {
        "base": base_name,
        "dtype": dtype,
        "nll_rows": settings.nll_rows,
        "answer_rows": settings.answer_rows,
        "seed": settings.seed,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def evaluate(
    systems: Systems,
    tasks: Sequence[Task],
    settings: ScoringSettings,
    on_cell: Callable[[str, str], None] = lambda task, system: None,
) -> dict[str, Any]:
    """{task: {measure: {"rows": n, "systems": {system: {mean, low, high, difference}}}}}.

    `difference` is to the base on the same rows, with a paired interval. NLL is in nats per
    completion token, end-of-text left out; lower is better. Scores are in [0, 1].
    """
    return {task.name: _evaluate_task(systems, task, settings, on_cell) for task in tasks}


def _evaluate_task(
    systems: Systems,
    task: Task,
    settings: ScoringSettings,
    on_cell: Callable[[str, str], None],
) -> dict[str, Any]:
    rows = task.rows(settings.data, settings.nll_rows, settings.seed)
    counts: list[float] = []
    values: dict[str, dict[str, list[float]]] = {"NLL": {}}
    for name in systems.names:
        nll, tokens = systems.nll(name, rows)
        values["NLL"][name] = nll
        counts = [float(count) for count in tokens]
        for measure, scores in _scores(systems, name, task, rows[: settings.answer_rows]).items():
            values.setdefault(measure, {})[name] = scores
        on_cell(task.name, name)
    return {
        measure: _summary(by_system, counts if measure == "NLL" else None)
        for measure, by_system in values.items()
    }


def _scores(systems: Systems, name: str, task: Task, rows: Sequence[Row]) -> dict[str, list[float]]:
    """{score: value of each row} of the system's answers."""
    if not task.scores:
        chosen = systems.choose(name, rows)
        right = [float(a == row.completion) for a, row in zip(chosen, rows, strict=True)]
        return {"accuracy": right}
    answers = [task.cleaned(a) for a in systems.generate(name, rows, task.max_new_tokens)]
    return {
        measure: [score(answer, row.completion) for answer, row in zip(answers, rows, strict=True)]
        for measure, score in task.scores.items()
    }


def _summary(by_system: dict[str, list[float]], weights: list[float] | None) -> dict[str, Any]:
    base = by_system[BASE]
    weights = weights or [1.0] * len(base)
    result: dict[str, Any] = {}
    for name, values in by_system.items():
        result[name] = asdict(bootstrap.ratio(values, weights))
        if name != BASE:
            differences = [ours - theirs for ours, theirs in zip(values, base, strict=True)]
            result[name]["difference"] = asdict(bootstrap.ratio(differences, weights))
    return {"rows": len(base), "systems": result}


Cell = Callable[[Mapping[str, Any]], str]


def markdown(results: Mapping[str, Any]) -> str:
    """Systems down, tasks across: NLL, scores, and for each the difference to the base.

    `results` is what `evaluate` returned. Bold: the interval of the difference excludes 0.
    """
    losses = {(task, "NLL"): measures["NLL"] for task, measures in results.items()}
    scores = {
        (task, measure): summary
        for task, measures in results.items()
        for measure, summary in measures.items()
        if measure != "NLL"
    }
    return "\n".join(
        [
            "Completion NLL in nats per token (lower is better):\n",
            _table(losses, lambda system: interval(system), with_base=True),
            "Its difference to the base on the same rows:\n",
            _table(losses, lambda system: difference(system["difference"]), with_base=False),
            "Scores of the answers in per cent (higher is better):\n",
            _table(scores, lambda system: interval(system, scale=100), with_base=True),
            "Their difference to the base on the same rows:\n",
            _table(
                scores, lambda system: difference(system["difference"], scale=100), with_base=False
            ),
        ]
    )


def _table(columns: Mapping[tuple[str, str], Any], cell: Cell, *, with_base: bool) -> str:
    heads = [
        f"{task}: {measure}, {summary['rows']} rows" for (task, measure), summary in columns.items()
    ]
    lines = table_head(["", *heads], range(len(heads) + 1))
    names = list(next(iter(columns.values()))["systems"])
    for name in names:
        if with_base or name != BASE:
            cells = [cell(summary["systems"][name]) for summary in columns.values()]
            lines.append(row([name, *cells]))
    return "\n".join(lines) + "\n"
