"""From samples to numbers, from numbers to a file, a table and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.load import Round, Sample

PERCENTILES = (50, 90, 99)
METRICS: Mapping[str, Callable[[Sample], Sequence[float]]] = {
    "ttft": lambda sample: [sample.ttft],
    "inter_token": lambda sample: sample.gaps,
    "e2e": lambda sample: [sample.seconds],
}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of a hundred lie, linear between the two nearest ranks.

    As numpy's default does. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(rounds: Sequence[Round]) -> dict[str, Any]:
    """One cell: each number is taken per round, then the median of the rounds.

    Latencies are in seconds, throughput in output tokens per second with its range over the rounds.
    """
    rates = [one.tokens_per_second for one in rounds]
    lengths = [sample.prompt_tokens for one in rounds for sample in one.samples]
    cell: dict[str, Any] = {
        "rounds": len(rounds),
        "requests_per_round": len(rounds[0].samples),
        "prompt_tokens": [min(lengths), max(lengths)],
        "output_tokens_per_second": statistics.median(rates),
        "output_tokens_per_second_range": [min(rates), max(rates)],
    }
    for metric, values_of in METRICS.items():
        cell[f"{metric}_seconds"] = {
            f"p{percent}": statistics.median(
                percentile([v for sample in one.samples for v in values_of(sample)], percent)
                for one in rounds
            )
            for percent in PERCENTILES
        }
    return cell


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def result_table(result: Mapping[str, Any]) -> Table:
    """The result for a terminal: one row a case and concurrency."""
    table = Table(title=f"{result['model']} on {result['machine']['processor']}")
    table.add_column("case", no_wrap=True)
    for heading in ("clients", "tokens/s", "range", "TTFT ms", "P99", "gap ms", "P99"):
        table.add_column(heading, justify="right")
    for cell in result["cells"]:
        low, high = cell["output_tokens_per_second_range"]
        ttft, gap = cell["ttft_seconds"], cell["inter_token_seconds"]
        milliseconds = (ttft["p50"], ttft["p99"], gap["p50"], gap["p99"])
        table.add_row(
            cell["title"],
            str(cell["concurrency"]),
            f"{cell['output_tokens_per_second']:.1f}",
            f"{low:.1f}-{high:.1f}",
            *(f"{1000 * value:.0f}" for value in milliseconds),
        )
    return table


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """Throughput (with its range over the rounds), time to first token, inter-token time."""
    titles = list(dict.fromkeys(cell["title"] for cell in result["cells"]))
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    headings = ("output tokens/s", "time to first token, P50, ms", "between tokens, P50, ms")
    levels = sorted({cell["concurrency"] for cell in result["cells"]})
    width = 0.8 / len(titles)
    for number, title in enumerate(titles):
        cells = [cell for cell in result["cells"] if cell["title"] == title]
        places = [levels.index(cell["concurrency"]) + number * width for cell in cells]
        for panel, heights, errors in zip(panels, _series(cells), _errors(cells), strict=True):
            panel.bar(places, heights, width, yerr=errors, label=title, color=f"C{number}")
    for panel, heading in zip(panels, headings, strict=True):
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("clients")
        panel.set_xticks([place + 0.4 - width / 2 for place in range(len(levels))], levels)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    machine = result["machine"]
    figure.suptitle(
        f"{result['model']}, {machine['processor']}, {machine['cores']} cores, "
        f"{result['software']['commit'][:10]}, {result['software']['date'][:10]}",
        fontsize=10,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
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
