"""Values of rows from kept answers; estimates, differences and comparisons from those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adaptermix.evaluation.asking import Answer, Ask
from adaptermix.evaluation.routing.plan import Case, EvaluationCell
from adaptermix.evaluation.routing.suite import Suite, SuiteRouting
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.tasks import Task, parses_as_python, task_named

NLL = "NLL"
OPENING_NLL = "NLL of the opening"
FIRST_NLL, SECOND_NLL = "NLL of the first part", "NLL of the second part"
NLLS = (NLL, OPENING_NLL, FIRST_NLL, SECOND_NLL)
PARSES = "parses"
AVERAGE = "average"
SCORE = "score"
# The one score of each task that goes into the average.
MAIN_SCORE: Mapping[str, str] = {
    "math": "exact match",
    "science": "accuracy",
    "code": "ROUGE-L",
    "reading": "F1",
}

Key = tuple[str, str]  # task, measure


@dataclass(frozen=True, slots=True)
class Series:
    """Values of rows, whose mean is sum(values) / sum(weights)."""

    values: tuple[float, ...]  # one a row, in their order: nats, or a score in [0, 1]
    weights: tuple[float, ...]  # of each row: its tokens, or 1


Strata = Sequence[Series]  # one a task: several for an average over tasks
Columns = Mapping[Key, Mapping[str, Strata]]  # {(task, measure): {routing: strata}}


def columns_of(cells: Sequence[EvaluationCell], answer: Callable[[Ask], Answer]) -> Columns:
    """Every measure of every cell, and the averages of the routings that have all tasks."""
    columns: dict[Key, dict[str, Strata]] = {}
    for cell in cells:
        answers = [answer(ask) for ask in cell.asks]
        for measure, series in _measures(cell, answers):
            columns.setdefault((cell.task, measure), {})[cell.routing.name] = [series]
    plain = list(dict.fromkeys(cell.task for cell in cells if cell.kind == "score"))
    for measure in (NLL, OPENING_NLL):
        _add_average(columns, measure, [(task, measure) for task in plain])
    _add_average(columns, SCORE, [(task, MAIN_SCORE[task]) for task in plain])
    return columns


def _add_average(columns: dict[Key, dict[str, Strata]], measure: str, parts: Sequence[Key]) -> None:
    if len(parts) < 2 or not all(part in columns for part in parts):
        return
    names = [name for name in columns[parts[0]] if all(name in columns[part] for part in parts)]
    if names:
        columns[AVERAGE, measure] = {
            name: [series for part in parts for series in columns[part][name]] for name in names
        }


def _measures(cell: EvaluationCell, answers: Sequence[Answer]) -> Iterator[tuple[str, Series]]:
    if cell.kind == "mixed":
        parts = [answer["scores"][0]["parts"] for answer in answers]
        yield NLL, _nll(parts)
        yield FIRST_NLL, _nll([part[:1] for part in parts])
        yield SECOND_NLL, _nll([part[-1:] for part in parts])
    elif cell.kind == "score":
        yield from _likelihoods(cell, answers)
    else:
        yield from _scores(task_named(cell.task), cell.cases, answers)


def _likelihoods(cell: EvaluationCell, answers: Sequence[Answer]) -> Iterator[tuple[str, Series]]:
    pairs = list(zip(cell.cases, answers, strict=True))
    right = [case.options.index(case.completion) if case.options else 0 for case, _ in pairs]
    parts = [a["scores"][i]["parts"] for (_, a), i in zip(pairs, right, strict=True)]
    if cell.routing.completion_tokens is None:
        yield NLL, _nll(parts)
    yield OPENING_NLL, _nll([part[:1] for part in parts])
    if all(case.options for case, _ in pairs):
        chosen = [_likeliest(answer) for answer in answers]
        yield "accuracy", _plain([float(a == b) for a, b in zip(chosen, right, strict=True)])


def _likeliest(answer: Answer) -> int:
    """The option of least NLL; of two alike the earlier."""
    totals = [sum(nll for nll, _ in score["parts"]) for score in answer["scores"]]
    return totals.index(min(totals))


def _nll(parts: Sequence[Sequence[tuple[float, int]]]) -> Series:
    """Nats and tokens of each row, summed over its parts."""
    values = tuple(sum(nll for nll, _ in row) for row in parts)
    return Series(values, tuple(float(sum(count for _, count in row)) for row in parts))


def _plain(values: Sequence[float]) -> Series:
    return Series(tuple(values), (1.0,) * len(values))


def _scores(
    task: Task, cases: Sequence[Case], answers: Sequence[Answer]
) -> Iterator[tuple[str, Series]]:
    pairs = [
        (task.cleaned(answer["text"]), case.completion)
        for case, answer in zip(cases, answers, strict=True)
    ]
    for name, score in task.scores.items():
        yield name, _plain([score(text, reference) for text, reference in pairs])
    if task.name == "code":
        # Other languages are left out: rows whose own solution is no Python.
        python = [text for text, reference in pairs if parses_as_python(reference)]
        if python:
            yield PARSES, _plain([parses_as_python(text) for text in python])


def plain_mean(strata: Strata) -> float:
    """The mean that `estimate` puts an interval around."""
    return sum(sum(s.values) / sum(s.weights) for s in strata) / len(strata)


def estimate(strata: Strata) -> dict[str, float]:
    """{mean, low, high}: the plain mean over strata, with its 95 % interval."""
    return asdict(bootstrap.macro([(series.values, series.weights) for series in strata]))


def difference(ours: Strata, theirs: Strata) -> dict[str, float]:
    """`estimate` of ours less theirs on the rows that both have, and how many those are."""
    gaps = []
    for one, other in zip(ours, theirs, strict=True):
        count = min(len(one.values), len(other.values))
        pairs = zip(one.values[:count], other.values[:count], strict=True)
        gaps.append(Series(tuple(a - b for a, b in pairs), one.weights[:count]))
    return {"rows": sum(len(gap.values) for gap in gaps), **estimate(gaps)}


def mean_of(systems: Sequence[Strata]) -> Strata:
    """Row by row the mean of several systems, on the rows that all have."""
    means = []
    for members in zip(*systems, strict=True):
        count = min(len(series.values) for series in members)
        columns = zip(*(series.values[:count] for series in members), strict=True)
        values = tuple(sum(column) / len(members) for column in columns)
        means.append(Series(values, members[0].weights[:count]))
    return means


def mixed_weights(
    cells: Sequence[EvaluationCell], answer: Callable[[Ask], Answer]
) -> dict[str, Any]:
    """{mixed task: {routing: {adapter: [first part, between, second part]}}}: mean weights."""
    means: dict[str, Any] = {}
    for cell in cells:
        if cell.kind != "mixed":
            continue
        rows = [answer(ask)["scores"][0].get("weights") for ask in cell.asks]
        if all(rows) and len({tuple(row) for row in rows}) == 1:
            means.setdefault(cell.task, {})[cell.routing.name] = {
                name.partition("@")[0]: _column_means([row[name] for row in rows])
                for name in rows[0]
            }
    return means


def _column_means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


Test = Callable[[SuiteRouting], bool]


def measures_of(columns: Columns, suite: Suite) -> list[dict[str, Any]]:
    """One entry a task and measure: {routing: {rows, mean, low, high, to_base, to_singles}}.

    `to_base` and `to_singles` are paired differences, to the base and to the mean of the single
    adapters; they are left out where those were not measured.
    """
    bases = _names(suite, lambda routing: routing.is_base)
    singles = _names(suite, lambda routing: routing.is_single)
    entries = []
    for (task, measure), column in columns.items():
        entry: dict[str, Any] = {}
        alone = [column[name] for name in singles if name in column]
        for name, strata in column.items():
            cell: dict[str, Any] = {
                "rows": sum(len(series.values) for series in strata),
                **estimate(strata),
            }
            if name not in bases and bases and bases[0] in column:
                cell["to_base"] = difference(strata, column[bases[0]])
            if alone:
                cell["to_singles"] = difference(strata, mean_of(alone))
            entry[name] = cell
        entries.append({"task": task, "measure": measure, "routings": entry})
    return entries


def comparisons_of(columns: Columns, suite: Suite) -> list[dict[str, Any]]:
    """Paired differences of two routings that answer the questions of the report.

    Each is {kind, task, measure, ours, theirs, rows, mean, low, high}.
    """
    pairs = [*_cadences(suite), *_contexts(suite), *_levels(suite), *_switches(columns, suite)]
    comparisons = []
    for kind, (task, measure), ours, theirs in pairs:
        column = columns.get((task, measure), {})
        if ours in column and theirs in column:
            gap = difference(column[ours], column[theirs])
            names = {"kind": kind, "task": task, "measure": measure, "ours": ours}
            comparisons.append({**names, "theirs": theirs, **gap})
    return comparisons


Pair = tuple[str, tuple[str, str], str, str]


def _names(suite: Suite, test: Test) -> list[str]:
    return [routing.name for routing in suite.routing if test(routing)]


def _is_token_router(routing: SuiteRouting) -> bool:
    return routing.is_token_level and routing.router.get("name") != "given"


def _cadences(suite: Suite) -> Iterator[Pair]:
    """Every second token against every other cadence of the same router."""
    for two in suite.routing:
        if not _is_token_router(two) or two.every != 2:
            continue
        for other in suite.routing:
            names = [(each.router.get("name"), each.family) for each in (two, other)]
            if names[0] == names[1] and _is_token_router(other) and other.every != 2:
                yield "cadence", (AVERAGE, NLL), two.name, other.name


def _contexts(suite: Suite) -> Iterator[Pair]:
    """Routings that recompute the context against their kin that keep it, on the opening."""
    for ours in suite.routing:
        for theirs in suite.routing:
            kin = theirs.router.get("name") == ours.router.get("name")
            if ours.recomputes and kin and _is_token_router(theirs) and theirs.every == ours.every:
                yield "context", (AVERAGE, OPENING_NLL), ours.name, theirs.name


def _levels(suite: Suite) -> Iterator[Pair]:
    """Weights for every token against weights for the request.

    From the same router, or from all that work so where that one doesn't.
    """
    by_request = [each for each in suite.routing if each.router and _is_fixed(each)]
    keys = [(AVERAGE, NLL), *((task.name, NLL) for task in suite.mixed)]
    keys += [(task.name, SECOND_NLL) for task in suite.mixed]
    for ours in suite.routing:
        if not _is_token_router(ours) or ours.every != 1:
            continue
        kin = [each for each in by_request if each.router["name"] == ours.router["name"]]
        for theirs in kin or by_request:
            for key in keys:
                yield "level", key, ours.name, theirs.name


def _switches(columns: Columns, suite: Suite) -> Iterator[Pair]:
    """Routings that may change in mid-answer against the best of the others, on mixed prompts."""
    for task in suite.mixed:
        column = columns.get((task.name, NLL), {})
        fixed = [name for name in _names(suite, _is_fixed) if name in column]
        if not fixed:
            continue
        best = min(fixed, key=lambda name: plain_mean(column[name]))
        for routing in suite.routing:
            if _is_token_router(routing) or routing.by_task is not None:
                yield "switch", (task.name, NLL), routing.name, best


def _is_fixed(routing: SuiteRouting) -> bool:
    """Whether one mixture answers the whole request."""
    level = routing.router.get("level", "request")
    return routing.by_task is None and level == "request"
