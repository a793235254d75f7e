"""The cost of routers as tables, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from adaptermix.bench.plots import save
from adaptermix.bench.report import goal_table, missing_lines, provenance, row, table_head

Result = Mapping[str, Any]
_STEP_HEADS = (
    *("case", "requests", "candidates", "adapters", "step ms", "range"),
    *("fixed ms", "range", "added ms", "in the model", "ratio", "range"),
)
_BANDS = ((0, 1), (1, 4), (4, 8), (8, 16), (16, 32))  # positions [from, to)
_MEANS = ("kl", "equal")
_RATIOS = (1, 2, 5, 10, 20, 50, 100, 200)


def step_lines(result: Result) -> list[str]:
    """Every case at every size, as a Markdown table."""
    lines = table_head(_STEP_HEADS)
    return lines + [row(_step_cells(line)) for line in result["steps"]]


def _step_cells(line: Mapping[str, Any]) -> list[str]:
    return [
        line["case"],
        str(line["requests"]),
        str(line["candidates"]),
        str(line["active_adapters"]),
        f"{line['step_ms']:.2f}",
        _range(line, "step_ms"),
        f"{line['fixed_ms']:.2f}",
        _range(line, "fixed_ms"),
        f"{line['added_ms']:+.2f}",
        f"{line['added_in_model_ms']:+.2f}",
        f"{line['ratio']:.3f}x",
        _range(line, "ratio", 3),
    ]


def _range(line: Mapping[str, Any], name: str, digits: int = 2) -> str:
    low, high = line[f"{name}_range"]
    return f"{low:.{digits}f}-{high:.{digits}f}"


def ratio_lines(result: Result) -> list[str]:
    """Ratios and added milliseconds, a column for each number of candidates."""
    counts = sorted({line["candidates"] for line in result["steps"]})
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for line in result["steps"]:
        text = f"{line['ratio']:.2f}x ({line['added_ms']:+.1f} ms)"
        cells.setdefault((line["case"], line["requests"]), {})[line["candidates"]] = text
    heads = ["weights by", "requests", *(f"{count} candidates" for count in counts)]
    lines = table_head(heads)
    for (case, requests), by_count in cells.items():
        lines.append(row([case, str(requests), *(by_count.get(count, "-") for count in counts)]))
    return lines


def route_lines(result: Result) -> list[str]:
    """Milliseconds of one request, by request routers."""
    counts = sorted({line["candidates"] for line in result["routes"]})
    cells: dict[str, dict[int, str]] = {}
    for line in result["routes"]:
        text = f"{line['ms']:.2f} ({_range(line, 'ms')})"
        cells.setdefault(line["router"], {})[line["candidates"]] = text
    heads = ["ms a request (range)", *(f"{count} candidates" for count in counts)]
    lines = table_head(heads)
    lines += [row([name, *(by.get(count, "-") for count in counts)]) for name, by in cells.items()]
    lines += [f"\nNot measured: {name} ({why})." for name, why in result["left_out"].items()]
    return lines


def context_lines(result: Result) -> list[str]:
    """KL and equal greedy tokens of the two contexts; nothing where they were not compared."""
    contexts = result.get("contexts")
    if contexts is None:
        return []
    lines = [
        "",
        "The next token under `context: keep` beside `recompute`, `similarity` every token, given "
        f"the same text: KL(keep || recompute) in nats over the {contexts['top']} most likely "
        "tokens of both, all others as one bucket (so at most the whole KL), and the share of "
        "tokens where both have the same most likely one. Texts are test rows with their "
        "completions; intervals by bootstrap over rows.",
        "",
        *table_head(("task", "rows", "KL [95 %]", "equal greedy tokens [95 %]")),
    ]
    for line in contexts["tasks"]:
        kl, equal = line["kl"], line["equal"]
        texts = (
            f"{kl['mean']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}]",
            f"{equal['mean']:.3f} [{equal['low']:.3f}, {equal['high']:.3f}]",
        )
        lines.append(row([line["task"], str(line["rows"]), *texts]))
    lines += ["", *table_head(("token", "KL", "equal"))]
    for start, stop in _BANDS:
        band = contexts["positions"][start:stop]
        count = sum(position["rows"] for position in band)
        if count:
            means = [
                sum(position["rows"] * position[name] for position in band) / count
                for name in _MEANS
            ]
            name = f"{start + 1}-{stop}" if stop > start + 1 else f"{stop}"
            lines.append(row([name, f"{means[0]:.5f}", f"{means[1]:.3f}"]))
    return lines


def profile_lines(result: Result) -> list[str]:
    """The profile of a step where the target was missed; nothing where it was not."""
    profile = result["profile"]
    if profile is None:
        return []
    lines = [
        "",
        f"Where the time goes: {profile['case']}, {profile['requests']} requests, "
        f"{profile['candidates']} candidates. Milliseconds a step in a function itself, under a "
        "profiler, which makes calls dearer than they are.",
        "",
        *table_head(("function", "ms", "with fixed weights")),
    ]
    return lines + [
        row([f"`{function['function']}`", f"{function['ms']:.2f}", f"{function['fixed_ms']:.2f}"])
        for function in profile["functions"]
    ]


def figures(result: Result) -> list[str]:
    """For the page on performance."""
    return [
        provenance(result),
        "",
        *ratio_lines(result),
        "",
        *goal_table(result["targets"]),
        "",
        *route_lines(result),
        *context_lines(result),
    ]


def markdown(result: Result) -> str:
    """The result as a page."""
    about = (
        f"Medians of {result['rounds']} rounds with their ranges. A step is one token of every "
        "request; a ratio is that to fixed weights in the same round. *Adapters* are the "
        f"different ones of a step with fixed weights, each of rank {result['rank']} on q, k, v, "
        "o. *In the model* is the share of the added time in the forward pass with sampling."
    )
    page = ["# `adaptermix bench routing`", "", provenance(result), "", *step_lines(result)]
    page += ["", about, "", "## Targets", "", *goal_table(result["targets"])]
    page += [*profile_lines(result), "", "## Once a request", "", *route_lines(result)]
    if result.get("contexts") is not None:
        page += ["", "## `keep` beside `recompute`", *context_lines(result)]
    return "\n".join([*page, "", *missing_lines(result.get("missing", {}))])


def result_tables(result: Result) -> list[Table]:
    """The result for a terminal."""
    steps = Table(title=f"{result['model']} on {result['machine']['processor']}")
    for heading in ("case", "requests", "candidates", "step ms", "fixed ms", "ratio"):
        steps.add_column(heading, justify="left" if heading == "case" else "right")
    for line in result["steps"]:
        cells = _step_cells(line)
        steps.add_row(cells[0], cells[1], cells[2], cells[4], cells[6], cells[10])
    routes = Table("router", "candidates", "ms a request")
    for line in result["routes"]:
        routes.add_row(line["router"], str(line["candidates"]), f"{line['ms']:.2f}")
    return [steps, routes]


def plot(path: Path, result: Result) -> None:
    """A panel for each number of requests: the ratio to fixed weights against candidates."""
    sizes = sorted({line["requests"] for line in result["steps"]})
    names = list(dict.fromkeys(line["case"] for line in result["steps"]))
    figure = Figure(figsize=(4 * len(sizes), 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    counts = sorted({line["candidates"] for line in result["steps"]})
    highest = max(line["ratio_range"][1] for line in result["steps"])
    for panel, requests in zip(panels, sizes, strict=True):
        for number, name in enumerate(names):
            lines = [
                line
                for line in result["steps"]
                if line["requests"] == requests and line["case"] == name
            ]
            _curve(panel, lines, name, f"C{number}")
        panel.axhline(1, color="0.6", lw=0.8)
        panel.set_title("1 request" if requests == 1 else f"{requests} requests", fontsize=10)
        panel.set_xlabel("candidates")
        panel.set_xscale("log")
        panel.set_yscale("log")
        ticks = [tick for tick in _RATIOS if tick < 2 * highest]
        panel.set_yticks(ticks, [f"{tick}x" for tick in ticks])
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("step time / step time with fixed weights")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(provenance(result), fontsize=8)
    save(figure, path)


def _curve(panel: Any, lines: Sequence[Mapping[str, Any]], name: str, color: str) -> None:
    """Medians, and the range of the rounds."""
    lines = sorted(lines, key=lambda line: int(line["candidates"]))
    x = [line["candidates"] for line in lines]
    panel.plot(x, [line["ratio"] for line in lines], "o-", color=color, label=name, ms=4)
    low, high = ([line["ratio_range"][end] for line in lines] for end in (0, 1))
    panel.fill_between(x, low, high, color=color, alpha=0.2)
