"""What is read from the values: the table, the differences in it, and the comparisons asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adaptermix.evaluation.routing.series import (
    AVERAGE,
    NLL,
    OPENING_NLL,
    SECOND_NLL,
    Columns,
    difference,
    estimate,
    mean_of,
    plain_mean,
)
from adaptermix.evaluation.routing.suite import Suite, SuiteRouting

Test = Callable[[SuiteRouting], bool]


def measures_of(columns: Columns, suite: Suite) -> list[dict[str, Any]]:
    """One entry a task and measure: {routing: {rows, mean, low, high, to_base, to_singles}}.

    `to_base` and `to_singles` are paired differences, to the base and to the mean of the single
    adapters; they are left out where those were not measured.
    """
    bases = _names(suite, lambda routing: routing.is_base)
    singles = _names(suite, lambda routing: routing.is_single)
    found = []
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
        found.append({"task": task, "measure": measure, "routings": entry})
    return found


def comparisons_of(columns: Columns, suite: Suite) -> list[dict[str, Any]]:
    """Paired differences of two routings that answer the questions of the report.

    Each is {kind, task, measure, ours, theirs, rows, mean, low, high}.
    """
    pairs = [*_cadences(suite), *_contexts(suite), *_levels(suite), *_switches(columns, suite)]
    found = []
    for kind, (task, measure), ours, theirs in pairs:
        column = columns.get((task, measure), {})
        if ours in column and theirs in column:
            gap = difference(column[ours], column[theirs])
            names = {"kind": kind, "task": task, "measure": measure, "ours": ours}
            found.append({**names, "theirs": theirs, **gap})
    return found


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
    """What recomputes the whole context against its kin that keeps it, on the opening."""
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
    """Who may change in mid-answer against the best of those who may not, on mixed prompts."""
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
