"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adaptermix.bench.plots import save
from adaptermix.bench.report import provenance
from adaptermix.evaluation.routing.results import AVERAGE, NLL

Column = Mapping[str, Any]

_WIDE = 4  # panels beside each other
_MARKERS = "os^D"


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """A panel a task: NLL of every routing with its interval; the last: NLL against tokens/s."""
    columns = [column for column in result["measures"] if column["measure"] == NLL]
    names = [routing["name"] for routing in result["suite"]["routing"]]
    names = [name for name in names if any(name in column["routings"] for column in columns)]
    average = next((column for column in columns if column["task"] == AVERAGE), None)
    with_speed = average is not None and bool(result["speed"])
    rows = max(1, -(-(len(columns) + with_speed) // _WIDE))
    size = (3.2 * _WIDE + 2, rows * (1.5 + 0.25 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, _WIDE, squeeze=False).flatten()
    for place, (panel, column) in enumerate(zip(panels, columns, strict=False)):
        _intervals(panel, column, names)
        if place % _WIDE:
            panel.set_yticklabels([])
    if with_speed and average is not None:
        _against_speed(panels[len(columns)], average, result["speed"])
    for panel in panels[len(columns) + with_speed :]:
        panel.set_axis_off()
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
    names = [name for name in average["routings"] if name in speed]
    for place, name in enumerate(names):
        look = {"color": f"C{place % 10}", "marker": _MARKERS[place // 10 % len(_MARKERS)]}
        at = [speed[name]["relative"]], [average["routings"][name]["mean"]]
        panel.plot(*at, linestyle="", label=name, **look)
    panel.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panel.set_title("average NLL against tokens/s", fontsize=10)
    panel.set_xlabel("tokens/s, a single adapter is 1")
    panel.margins(0.1)
    panel.spines[["top", "right"]].set_visible(False)
