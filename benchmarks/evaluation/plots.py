"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evaluation.series import AVERAGE, NLL
from benchmarks.plots import save
from benchmarks.report import provenance

Column = Mapping[str, Any]


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """A panel a task: NLL of every routing with its interval; the last: NLL against tokens/s."""
    columns = [column for column in result["measures"] if column["measure"] == NLL]
    names = [routing["name"] for routing in result["suite"]["routing"]]
    names = [name for name in names if any(name in column["routings"] for column in columns)]
    average = next((column for column in columns if column["task"] == AVERAGE), None)
    drawn = len(columns) + (average is not None and bool(result["speed"]))
    figure = Figure(figsize=(3.2 * max(1, drawn) + 2, 1.5 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, max(1, drawn), squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=False):
        _intervals(panel, column, names)
    for panel in panels[1 : len(columns)]:
        panel.set_yticklabels([])
    if drawn > len(columns) and average is not None:
        _against_speed(panels[-1], average, result["speed"])
    figure.suptitle(provenance(result), fontsize=9)
    save(figure, path)


def _intervals(panel: Any, column: Column, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        cell = column["routings"].get(name)
        if cell is not None:
            spread = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
            panel.errorbar([cell["mean"]], [place], xerr=spread, fmt="o", color="C0", capsize=2)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_title(column["task"], fontsize=10)
    panel.set_xlabel("nats per token")
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _against_speed(panel: Any, average: Column, speed: Mapping[str, Mapping[str, float]]) -> None:
    """Left and low is slow and good."""
    for name, cell in average["routings"].items():
        if name in speed:
            at = speed[name]["relative"], cell["mean"]
            panel.plot(*at, "o", color="C1")
            panel.annotate(name, at, fontsize=6, xytext=(3, 3), textcoords="offset points")
    panel.set_title("average NLL against tokens/s", fontsize=10)
    panel.set_xlabel("tokens/s, a single adapter is 1")
    panel.margins(x=0.25, y=0.1)
    panel.spines[["top", "right"]].set_visible(False)
