"""Fills `docs/evaluation.md` with the figures of `benchmarks/results/`; `make docs` calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptermix.bench.performance import Figures, Write, fill
from adaptermix.bench.report import provenance
from adaptermix.evaluation.routing import report
from adaptermix.evaluation.routing.verdicts import verdicts

_RUN, _TUNE = "adaptermix eval --data data", "adaptermix eval --tune --data data"


def _with_origin(write: Callable[[Mapping[str, Any]], list[str]]) -> Write:
    return lambda result: [provenance(result), "", *write(result)]


FIGURES: Figures = {
    "verdicts": ("evaluation", _RUN, _with_origin(verdicts)),
    "likelihoods": ("evaluation", _RUN, report.table),
    "differences": ("evaluation", _RUN, report.differences),
    "scores": ("evaluation", _RUN, report.scores),
    "mixed": ("evaluation", _RUN, report.mixed),
    "opening": ("evaluation", _RUN, report.opening),
    "leaks": ("evaluation", _RUN, report.leaks),
    "mixtures": ("evaluation", _RUN, report.bodies),
    "tuning": ("tuned", _TUNE, _with_origin(report.tuning)),
}
_PICTURED = {"likelihoods": "NLL of each task and routing, and quality against tokens a second"}


def filled(page: str, results: Path, pictures: str) -> str:
    """The page with each `figures` mark filled: see `adaptermix.bench.performance.fill`."""
    return fill(page, results, pictures, FIGURES, _PICTURED)
