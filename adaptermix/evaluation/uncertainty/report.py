"""The result as Markdown and as a reliability diagram."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adaptermix.bench.plots import save
from adaptermix.bench.report import missing_lines, provenance, row, table_head
from adaptermix.evaluation.intervals import interval

Result = Mapping[str, Any]
Lines = list[str]


def markdown(result: Result) -> str:
    """The result as a page."""
    lines = ["# `adaptermix bench uncertainty`", "", *origin(result)]
    for title, write in _SECTIONS.items():
        lines += ["", f"## {title}", "", *write(result)]
    return "\n".join([*lines, "", *missing_lines(result.get("missing", {}))])


def origin(result: Result) -> Lines:
    """Origin of the figures, and the rows that they are of."""
    settings = result["settings"]
    sets = ", ".join(settings["unfamiliar"])
    rows = next(iter(result["adapters"][0]["ways"].values()))["rows"]
    return [
        provenance(result),
        "",
        f"{rows} test rows of ARC, about as many prompts of {sets}; an ensemble of "
        f"{settings['members']} members; seed {settings['seed']}. In brackets 95 % intervals over "
        "resampled rows; an interval of a difference is that of the rows' own differences.",
    ]


def answers(result: Result) -> Lines:
    """Accuracy, likelihood, calibration and speed."""
    heads = ("adapter", "served as", "accuracy", "NLL of the right option", "ECE", "tokens/s")
    lines = table_head(heads, (0, 1))
    for adapter in result["adapters"]:
        for way, measured in adapter["ways"].items():
            numbers = [_interval(measured[name]) for name in ("accuracy", "nll", "ece")]
            lines.append(row((adapter["adapter"], way, *numbers, _speed(adapter, way))))
    return lines


def wrong(result: Result) -> Lines:
    """AUROC of each score on wrong answers among right ones."""
    return _detection(result, "wrong")


def unfamiliar(result: Result) -> Lines:
    """AUROC of each score on other tasks' prompts among ARC's."""
    return _detection(result, "unfamiliar")


def plot(path: Path, result: Result) -> None:
    """The reliability diagram: how often answers are right against how sure they are."""
    adapters = result["adapters"]
    figure = Figure(figsize=(4.2 * len(adapters), 4.2), layout="constrained")
    panels = figure.subplots(1, len(adapters), squeeze=False)[0]
    for panel, adapter in zip(panels, adapters, strict=True):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for place, (way, measured) in enumerate(adapter["ways"].items()):
            sure = [entry["confidence"] for entry in measured["bins"]]
            right = [entry["accuracy"] for entry in measured["bins"]]
            sizes = [8 + 300 * entry["count"] / measured["rows"] for entry in measured["bins"]]
            label = f"{way}, ECE {measured['ece']['mean']:.3f}"
            panel.plot(sure, right, color=f"C{place}", linewidth=1, label=label)
            panel.scatter(sure, right, s=sizes, color=f"C{place}", alpha=0.7)
        panel.set_title(adapter["adapter"], fontsize=10)
        panel.set_xlabel("probability of the answer")
        panel.set_ylabel("share that is right")
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
        panel.legend(fontsize=8, loc="upper left", frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(provenance(result), 64 * len(adapters)), fontsize=8)
    save(figure, path)


def _detection(result: Result, kind: str) -> Lines:
    heads = ("adapter", "served as", "score", "AUROC", "to the average's own entropy")
    lines = table_head(heads, (0, 1, 2))
    for adapter in result["adapters"]:
        for entry in adapter[kind]:
            gap = _interval(entry["to_average"]) if "to_average" in entry else ""
            names = (adapter["adapter"], entry["way"], entry["score"])
            lines.append(row((*names, _interval(entry), gap)))
    return lines


def _interval(cell: Mapping[str, Any]) -> str:
    return "not defined" if cell["mean"] is None else interval(cell)


def _speed(adapter: Mapping[str, Any], way: str) -> str:
    speed = adapter["speed"].get(way)
    return f"{speed['tokens_per_second']:.0f} ({speed['relative']:.2f})" if speed else "-"


_SECTIONS = {
    "Answers": answers,
    "Wrong answers": wrong,
    "Unfamiliar prompts": unfamiliar,
}
