"""Verdicts: whether what was measured meets a goal, by a bound or by an interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["met", "missed", "open"]


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a measured cell."""

    system: str
    suite: str
    case: str
    clients: int

    def __str__(self) -> str:
        return f"{self.system}, {self.case}, c = {self.clients}"


Rates = Mapping[Key, Sequence[float]]  # output tokens/s, one a round
Scalars = Mapping[str, Sequence[float]]  # everything else, one a round or repetition


@dataclass(frozen=True, slots=True)
class Goal:
    """A value that is to be at least, or at most, `bound`."""

    what: str  # for people
    bound: float
    at_least: bool = True
    over: Key | None = None  # the value is the ratio of its median throughput to the highest of
    under: tuple[Key, ...] = ()  # these,
    factor: str | None = None  # times the median of this scalar
    scalar: str | None = None  # without `over`: the value is the median of this scalar
    unit: str = "x"
    missing: str = "not measured in this run"  # said where it was not


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a goal is met, and by which value."""

    goal: Goal
    status: Status
    value: float | None = None
    low: float | None = None  # over rounds, each round's ratio its own
    high: float | None = None
    note: str = ""


def judge_value(
    goal: Goal, value: float | None, values: Sequence[float] = (), note: str = ""
) -> Verdict:
    """Met or missed by `value`, whose range is that of `values`; open for None."""
    if value is None:
        return Verdict(goal, "open", note=note or goal.missing)
    met = value >= goal.bound if goal.at_least else value <= goal.bound
    low, high = (min(values), max(values)) if values else (None, None)
    return Verdict(goal, "met" if met else "missed", value, low, high, note)


def judge_interval(low: float, high: float) -> Status:
    """A claim that a difference is below 0, by its interval: open where that holds 0."""
    if high < 0:
        return "met"
    return "missed" if low > 0 else "open"


def judge(goal: Goal, rates: Rates, scalars: Scalars) -> Verdict:
    """Met, missed, or open where something was not measured."""
    if goal.over is None:
        values = scalars.get(goal.scalar or "", ())
        return judge_value(goal, statistics.median(values) if values else None, values)
    measured = [key for key in goal.under if key in rates]
    factor = scalars.get(goal.factor, ()) if goal.factor else (1.0,)
    if goal.over not in rates or not measured or not factor:
        gone = [str(key) for key in (goal.over, *goal.under) if key not in rates]
        return judge_value(goal, None, note=f"{goal.missing}: {'; '.join(gone) or goal.factor}")
    scale = statistics.median(factor)
    best = max(measured, key=lambda key: statistics.median(rates[key]))
    ratio = scale * statistics.median(rates[goal.over]) / statistics.median(rates[best])
    pairs = zip(rates[goal.over], rates[best], strict=False)
    verdict = judge_value(goal, ratio, [scale * ours / other for ours, other in pairs])
    gone = [key.system for key in goal.under if key not in rates]
    if not gone:
        return verdict
    # A peer that is missing could only have made the ratio smaller.
    status: Status = "open" if verdict.status == "met" else "missed"
    return replace(verdict, status=status, note=f"without {', '.join(gone)}")
