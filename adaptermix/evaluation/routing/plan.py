"""The cells of an evaluation: which asks make up each, and in which order they are sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adaptermix.evaluation.routing.asks import (
    Ask,
    answer_ask,
    mixture_for,
    mixture_for_mixed,
    named_in,
    score_ask,
)
from adaptermix.evaluation.routing.rows import Case, Rows, Words, mixed_cases, plain_cases
from adaptermix.evaluation.routing.settings import EvaluationSettings
from adaptermix.evaluation.routing.suite import MixedTask, Suite, SuiteRouting
from adaptermix.evaluation.scoring.tasks import Task, task_named
from adaptermix.training.data import Row

Kind = Literal["score", "mixed", "answer"]  # likelihoods, those of mixed prompts, generation
_KINDS: tuple[Kind, ...] = ("score", "mixed", "answer")


@dataclass(frozen=True, slots=True)
class EvaluationCell:
    """One task under one routing, asked about in one way. `asks[i]` is about `cases[i]`."""

    kind: Kind
    task: str
    routing: SuiteRouting
    cases: Sequence[Case]
    asks: Sequence[Ask]

    @property
    def lane(self) -> tuple[float, int]:
        """Cells of a lane and task run together; lanes run from the least to the greatest."""
        return self.routing.cost, _KINDS.index(self.kind)


def plan_cells(
    suite: Suite, settings: EvaluationSettings, rows: Rows, words: Words
) -> list[EvaluationCell]:
    """Every cell of the suite; an empty one is left out."""
    read = _Reader(settings, rows)
    cells: list[EvaluationCell] = []
    for name in suite.tasks:
        task = task_named(name)
        cases = plain_cases(task, read(task), words)
        for routing in suite.routing:
            cells += _plain(task, routing, cases, settings, words)
    for mixed in suite.mixed:
        cases = mixed_cases(read(task_named(mixed.first)), read(task_named(mixed.second)))
        for routing in suite.routing:
            cells.append(_mixed(mixed, routing, cases, settings, words))
    return [cell for cell in cells if cell.asks]


class _Reader:
    """The test rows of a task, read once."""

    def __init__(self, settings: EvaluationSettings, rows: Rows) -> None:
        self._settings = settings
        self._rows = rows
        self._known: dict[str, list[Row]] = {}

    def __call__(self, task: Task) -> list[Row]:
        if task.name not in self._known:
            count = max(self._settings.rows, self._settings.answer_rows, self._settings.mixed_rows)
            self._known[task.name] = self._rows.test(task, count, self._settings.seed)
        return self._known[task.name]


def _plain(
    task: Task,
    routing: SuiteRouting,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    words: Words,
) -> Iterator[EvaluationCell]:
    mixture = mixture_for(routing, task.name)
    chosen = cases[: _least(settings.rows, routing.rows)]
    asks = [score_ask(case, routing, mixture, words) for case in chosen]
    yield EvaluationCell("score", task.name, routing, chosen, asks)
    if task.scores and routing.completion_tokens is None:
        chosen = cases[: _least(settings.answer_rows, routing.answer_rows)]
        asks = [answer_ask(case, routing, mixture, task.max_new_tokens) for case in chosen]
        yield EvaluationCell("answer", task.name, routing, chosen, asks)


def _mixed(
    task: MixedTask,
    routing: SuiteRouting,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    words: Words,
) -> EvaluationCell:
    count = _least(settings.mixed_rows, routing.mixed_rows)
    chosen = cases[:count] if routing.completion_tokens is None else ()
    asks = []
    for case in chosen:
        mixture = mixture_for_mixed(routing, task.first, task.second, case, words)
        asks.append(score_ask(case, routing, mixture, words))
    return EvaluationCell("mixed", task.name, routing, chosen, asks)


def _least(wanted: int, bound: int | None) -> int:
    return wanted if bound is None else min(wanted, bound)


def waves(cells: Sequence[EvaluationCell]) -> Iterator[list[Ask]]:
    """The asks of each lane and task, row by row over the cells: the cheapest lane first.

    The same row is asked under every routing at about the same time: what depends on its text
    alone is then computed once, and a run that is stopped leaves all routings the same rows.
    """
    ordered = sorted(cells, key=lambda cell: cell.lane)
    for _, lane in itertools.groupby(ordered, key=lambda cell: (cell.lane, cell.task)):
        rows = itertools.zip_longest(*(cell.asks for cell in lane))
        yield [ask for row in rows for ask in row if ask is not None]


def adapters_of(suite: Suite) -> set[str]:
    """Every adapter that the suite names."""
    names: set[str] = set()
    for routing in suite.routing:
        names.update(named_in(routing.mixture), (routing.by_task or {}).values())
    for tuning in suite.tuning:
        names.update(named_in(tuning.mixture))
    return names
