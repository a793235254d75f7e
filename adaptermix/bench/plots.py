"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adaptermix.bench.report import provenance

_GAP = 0.2  # between two groups of bars


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """Throughput (with its range over the rounds), time to first token, inter-token time."""
    titles = list(dict.fromkeys(cell["title"] for cell in result["cells"]))
    levels = list(dict.fromkeys(cell["load"] for cell in result["cells"]))
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    headings = ("output tokens/s", "time to first token, P50, ms", "between tokens, P50, ms")
    width = (1 - _GAP) / len(titles)
    for number, title in enumerate(titles):
        cells = [cell for cell in result["cells"] if cell["title"] == title]
        places = [levels.index(cell["load"]) + number * width for cell in cells]
        for panel, heights, errors in zip(panels, _series(cells), _errors(cells), strict=True):
            panel.bar(places, heights, width, yerr=errors, label=title, color=f"C{number}")
    for panel, heading in zip(panels, headings, strict=True):
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("load: clients, or requests/s")
        centre = (1 - _GAP - width) / 2
        panel.set_xticks([place + centre for place in range(len(levels))], levels)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    figure.suptitle(provenance(result), fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    save(figure, path)


def plot_curves(path: Path, result: Mapping[str, Any]) -> None:
    """One panel a curve: milliseconds of a decode step against what is varied, and the floor."""
    names = list(dict.fromkeys(point["curve"] for point in result["points"]))
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        points = [point for point in result["points"] if point["curve"] == name]
        for number, case in enumerate(dict.fromkeys(point["case"] for point in points)):
            chosen = [point for point in points if point["case"] == case]
            x = [point["x"] for point in chosen]
            panel.plot(x, [p["step_ms"] for p in chosen], "o-", color=f"C{number}", label=case)
            low, high = ([p["step_ms_range"][end] for p in chosen] for end in (0, 1))
            panel.fill_between(x, low, high, color=f"C{number}", alpha=0.2)
            floors = [p["floor_ms"] for p in chosen]
            panel.plot(x, floors, ":", color=f"C{number}", label=f"{case}: bytes over bandwidth")
        panel.set_title(f"step ms against {points[0]['axis']}", fontsize=10)
        panel.set_xscale("log", base=2)
        panel.set_xticks([point["x"] for point in points], [str(p["x"]) for p in points])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7)
    figure.suptitle(provenance(result), fontsize=9)
    save(figure, path)


def plot_kernels(path: Path, result: Mapping[str, Any]) -> None:
    """Microseconds of each product, by who computes it and the number of rows."""
    heights = sorted({line["rows"] for line in result["products"]})
    figure = Figure(figsize=(4 * len(heights), 3.6), layout="constrained")
    panels = figure.subplots(1, len(heights), squeeze=False)[0]
    for panel, height in zip(panels, heights, strict=True):
        lines = [line for line in result["products"] if line["rows"] == height]
        places = range(len(lines))
        contenders = list(dict.fromkeys(who for line in lines for who in line["us"]))
        width = (1 - _GAP) / len(contenders)
        for number, who in enumerate(contenders):
            values = [line["us"].get(who, 0.0) for line in lines]
            panel.barh([place + width * number for place in places], values, width, label=who)
        middle = width * (len(contenders) - 1) / 2
        panel.set_yticks([place + middle for place in places], [line["product"] for line in lines])
        panel.set_xlabel("microseconds")
        panel.set_title(f"{height} rows", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    figure.suptitle(provenance(result), fontsize=9)
    save(figure, path)


def plot_peers(path: Path, result: Mapping[str, Any]) -> None:
    """Output tokens/s of every system: a panel a case, a group of bars a number of clients."""
    cells = [cell for cell in result["cells"] if cell["suite"] == "peers"]
    cases = list(dict.fromkeys(cell["case"] for cell in cells))
    systems = list(dict.fromkeys(cell["system"] for cell in cells))
    colors = _kindred_colors(systems)
    # As wide as they have bars: not every system is measured under every load.
    groups = {case: _groups(cells, case) for case in cases}
    widths = [sum(map(len, levels.values())) + len(levels) for levels in groups.values()]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False, width_ratios=widths)[0]
    for panel, (case, levels) in zip(panels, groups.items(), strict=True):
        place, ticks = 0.0, []
        for members in levels.values():
            ticks.append(place + (len(members) - 1) / 2)
            for cell in members:
                _labelled_bar(panel, place, cell, colors[cell["system"]])
                place += 1
            place += 1  # between two groups
        panel.set_title(next(cell["title"] for cell in cells if cell["case"] == case), fontsize=10)
        panel.set_xticks(ticks, list(levels))
        panel.set_xlabel("clients")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(y=0.1)
    panels[0].set_ylabel("output tokens/s")
    handles = [Patch(color=colors[system], label=system) for system in systems]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(systems), fontsize=9)
    figure.suptitle(provenance(result), fontsize=9)
    save(figure, path)


def _kindred_colors(systems: Sequence[str]) -> dict[str, Any]:
    """A system named after another ("llama.cpp Q4_1") has its color, lighter."""
    parents = [s for s in systems if not any(s.startswith(f"{other} ") for other in systems)]
    colors: dict[str, Any] = {}
    for system in systems:
        parent = next(one for one in parents if f"{system} ".startswith(f"{one} "))
        color = f"C{parents.index(parent)}"
        colors[system] = color if system == parent else (color, 0.5)
    return colors


def _groups(cells: Sequence[Mapping[str, Any]], case: str) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of a case by their number of clients, in the order of both."""
    chosen = sorted((cell for cell in cells if cell["case"] == case), key=lambda c: c["clients"])
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in chosen:
        groups.setdefault(cell["load"], []).append(cell)
    return groups


def _labelled_bar(panel: Any, place: float, cell: Mapping[str, Any], color: Any) -> None:
    """Median throughput, its range over the rounds, and the number above."""
    rate, spread = cell["output_tokens_per_second"], _errors([cell])[0]
    bars = panel.bar([place], [rate], 0.9, yerr=spread, color=color, error_kw={"lw": 0.8})
    panel.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _series(cells: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    return (
        [cell["output_tokens_per_second"] for cell in cells],
        [1000 * cell["ttft_seconds"]["p50"] for cell in cells],
        [1000 * cell["inter_token_seconds"]["p50"] for cell in cells],
    )


def _errors(cells: Sequence[Mapping[str, Any]]) -> tuple[Any, None, None]:
    """Distances below and above the throughput bars; the other panels have none."""
    rates = [cell["output_tokens_per_second"] for cell in cells]
    ranges = [cell["output_tokens_per_second_range"] for cell in cells]
    below = [rate - low for rate, (low, _) in zip(rates, ranges, strict=True)]
    above = [high - rate for rate, (_, high) in zip(rates, ranges, strict=True)]
    return [below, above], None, None
