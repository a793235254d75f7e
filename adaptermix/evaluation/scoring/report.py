"""The results as markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptermix.evaluation.scoring.models import BASE

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
            _table(losses, lambda system: _interval(system, 1), with_base=True),
            "Its difference to the base on the same rows:\n",
            _table(losses, lambda system: _difference(system["difference"], 1), with_base=False),
            "Scores of the answers in per cent (higher is better):\n",
            _table(scores, lambda system: _interval(system, 100), with_base=True),
            "Their difference to the base on the same rows:\n",
            _table(scores, lambda system: _difference(system["difference"], 100), with_base=False),
        ]
    )


def _table(columns: Mapping[tuple[str, str], Any], cell: Cell, *, with_base: bool) -> str:
    heads = [
        f"{task}: {measure}, {summary['rows']} rows" for (task, measure), summary in columns.items()
    ]
    lines = [_line(["", *heads]), _line(["---"] * (len(heads) + 1))]
    names = list(next(iter(columns.values()))["systems"])
    for name in names:
        if with_base or name != BASE:
            cells = [cell(summary["systems"][name]) for summary in columns.values()]
            lines.append(_line([name, *cells]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _difference(estimate: Mapping[str, float], scale: int) -> str:
    text = _interval(estimate, scale, sign="+")
    return f"**{text}**" if estimate["low"] > 0 or estimate["high"] < 0 else text


def _interval(estimate: Mapping[str, float], scale: int, sign: str = "") -> str:
    digits = 3 if scale == 1 else 1
    mean, low, high = (
        f"{estimate[key] * scale:{sign}.{digits}f}" for key in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]"
