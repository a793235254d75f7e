"""`adaptermix eval --tune`: the parameters of each family of routers, chosen on train rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import resolve
from adaptermix.evaluation.asking import Asking
from adaptermix.evaluation.journal import Journal
from adaptermix.evaluation.routing.plan import (
    EvaluationCell,
    Rows,
    Words,
    plain_cases,
    score_ask,
    waves,
)
from adaptermix.evaluation.routing.results import NLL, columns_of, plain_mean
from adaptermix.evaluation.routing.run import EvaluationSite, find_leak, site, words_of
from adaptermix.evaluation.routing.suite import Suite, SuiteRouting, Tuning, load_suite
from adaptermix.evaluation.scoring.tasks import task_named
from adaptermix.evaluation.settings import EvaluationSettings


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of a family's grid."""

    family: str
    params: Mapping[str, Any]
    routing: SuiteRouting


def run_tuning(settings: EvaluationSettings, model: ModelSettings) -> dict[str, Any]:
    """Try every grid; the result as written to JSON. Test rows are never opened.

    Raises BenchmarkError.
    """
    console = Console(stderr=True)
    suite = load_suite(settings.suite).only((), settings.task)
    if not suite.tuning:
        raise BenchmarkError("the suite has no tuning: nothing is to be chosen")
    if not suite.tasks:
        raise BenchmarkError("parameters are chosen on plain tasks: name one with --task")
    subject = resolve(model.model)
    rows = Rows(settings.data, "train")
    trials = [trial for tuning in suite.tuning for trial in trials_of(tuning)]
    cells = _cells(suite, trials, settings, rows, words_of(subject))
    with (
        site(subject, suite, settings, model) as at,
        Journal(settings.journal, restart=settings.restart) as journal,
    ):
        losses = uvloop.run(_measure(at, trials, cells, settings, journal, console))
    return {
        **origin("tuning", subject.name, at.serving, asdict(settings) | {"data": None}),
        "files": rows.files,
        "families": chosen_of(trials, losses),
    }


def trials_of(tuning: Tuning) -> list[Trial]:
    """Every combination of the values of a grid, the last parameter moving fastest."""
    trials = []
    for values in itertools.product(*tuning.grid.values()):
        params = dict(zip(tuning.grid, values, strict=True))
        told = ", ".join(f"{name} {value}" for name, value in params.items())
        mixture = {"router": {**tuning.mixture["router"], **params}}
        routing = SuiteRouting(name=f"{tuning.family}: {told}", mixture=mixture, cost=tuning.cost)
        trials.append(Trial(tuning.family, params, routing))
    return trials


def chosen_of(trials: Sequence[Trial], losses: Mapping[str, float]) -> dict[str, Any]:
    """{family: {chosen, grid}}: of the least NLL; of two alike the earlier."""
    families: dict[str, Any] = {}
    for trial in trials:
        entry = {"params": dict(trial.params), "nll": losses[trial.routing.name]}
        families.setdefault(trial.family, {"chosen": {}, "grid": []})["grid"].append(entry)
    for family in families.values():
        family["chosen"] = min(family["grid"], key=lambda entry: entry["nll"])["params"]
    return families


def _cells(
    suite: Suite,
    trials: Sequence[Trial],
    settings: EvaluationSettings,
    rows: Rows,
    words: Words,
) -> list[EvaluationCell]:
    cells = []
    for name in suite.tasks:
        task = task_named(name)
        cases = plain_cases(task, rows.tuning(task, settings.tune_rows), words)
        for trial in trials:
            mixture = trial.routing.mixture
            asks = [score_ask(case, trial.routing, mixture, words) for case in cases]
            cells.append(EvaluationCell("score", name, trial.routing, cases, asks))
    return cells


async def _measure(
    at: EvaluationSite,
    trials: Sequence[Trial],
    cells: Sequence[EvaluationCell],
    settings: EvaluationSettings,
    journal: Journal,
    console: Console,
) -> dict[str, float]:
    """{routing of a trial: NLL in nats a token, the mean over tasks}."""
    async with http_client(at.url) as http:
        asking = Asking(http, journal, at.identity, settings.concurrency, console)
        for trial in {trial.family: trial for trial in trials}.values():
            await find_leak(asking, trial.routing)  # what the server refuses, it refuses now
        await asking.ask_all(list(waves(cells)))
    columns = columns_of(cells, asking.answer)
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    return {
        trial.routing.name: plain_mean(
            [series for task in tasks for series in columns[task, NLL][trial.routing.name]]
        )
        for trial in trials
    }
