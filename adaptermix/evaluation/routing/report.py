"""The result as Markdown: the table, what it says, and what it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adaptermix.bench.report import provenance, row
from adaptermix.evaluation.routing.series import (
    AVERAGE,
    FIRST_NLL,
    NLL,
    NLLS,
    OPENING_NLL,
    SCORE,
    SECOND_NLL,
)
from adaptermix.evaluation.routing.verdicts import verdicts

Result = Mapping[str, Any]
Lines = list[str]
_NONE = "-"


def markdown(result: Result) -> str:
    """The result as a page."""
    lines = ["# `adaptermix eval`", "", provenance(result), ""]
    for title, write in SECTIONS.items():
        body = write(result)
        if body:
            lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def table(result: Result) -> Lines:
    """NLL of each task and their average, and tokens a second."""
    tasks = [*result["suite"]["tasks"], AVERAGE]
    columns = [c for c in (_column(result, task, NLL) for task in tasks) if c]
    if not columns:
        return []
    heads = ["routing", *(f"{c['task']}, rows {_rows(c)}" for c in columns), "tokens/s"]
    lines = [row(heads), row(["---", *["--:"] * (len(heads) - 1)])]
    for name in _routings(result, columns):
        cells = [_interval(c["routings"].get(name)) for c in columns]
        lines.append(row([name, *cells, _speed(result, name)]))
    return lines


def differences(result: Result) -> Lines:
    """What each routing is ahead of the base and of the mean of the single adapters."""
    column = _column(result, AVERAGE, NLL)
    if not column:
        return []
    heads = ("routing", "to the base", "to the mean of the single adapters", "rows")
    lines = [row(heads), row(("---", "--:", "--:", "--:"))]
    for name, cell in column["routings"].items():
        gaps = [_gap(cell.get(to), digits=3) for to in ("to_base", "to_singles")]
        if gaps != [_NONE, _NONE]:
            lines.append(row([name, *gaps, str(cell["rows"])]))
    return lines


def scores(result: Result) -> Lines:
    """What the answers score, in per cent."""
    columns = [
        c
        for c in result["measures"]
        if c["measure"] not in NLLS and (c["task"] != AVERAGE or c["measure"] == SCORE)
    ]
    if not columns:
        return []
    heads = ["routing", *(f"{c['task']}: {c['measure']}, rows {_rows(c)}" for c in columns)]
    lines = [row(heads), row(["---", *["--:"] * len(columns)])]
    for name in _routings(result, columns):
        cells = [_interval(c["routings"].get(name), scale=100) for c in columns]
        lines.append(row([name, *cells]))
    return lines


def mixed(result: Result) -> Lines:
    """NLL of prompts that need two skills: whole, and each of the two answers in them."""
    lines: Lines = []
    for task in result["suite"].get("mixed", []):
        columns = [_column(result, task["name"], m) for m in (NLL, FIRST_NLL, SECOND_NLL)]
        found = [column for column in columns if column]
        if not found:
            continue
        parts = ("whole", f"{task['first']} part", f"{task['second']} part")
        heads = ["routing", *parts, "to the base, whole", f"weight on {task['first']}"]
        lines += ["", f"*{task['name']}*, rows {_rows(found[0])}:", ""]
        lines += [row(heads), row(["---", *["--:"] * (len(heads) - 1)])]
        for name in _routings(result, found):
            cells = [_interval(column["routings"].get(name)) for column in found]
            gap = _gap(found[0]["routings"][name].get("to_base"), digits=3)
            lines.append(row([name, *cells, gap, _weights(result, task, name)]))
    return lines[1:]


def opening(result: Result) -> Lines:
    """NLL of the first tokens of each completion: what all routings can be compared on."""
    column = _column(result, AVERAGE, OPENING_NLL)
    if not column:
        return []
    lines = [row(("routing", "NLL", "to the base", "rows")), row(("---", "--:", "--:", "--:"))]
    for name, cell in column["routings"].items():
        gap = _gap(cell.get("to_base"), digits=3)
        lines.append(row([name, _interval(cell), gap, str(cell["rows"])]))
    return lines


def leaks(result: Result) -> Lines:
    """What a routing's weights know of the text after them."""
    heads = ("routing", "tokens alike", "weights there", "log probabilities there")
    lines = [row((*heads, "weights afterwards")), row(["---", *["--:"] * 4])]
    for leak in result["leaks"]:
        gaps = [leak["weights"], leak["logprobs"], leak["later"]]
        told = [_NONE if gap is None else f"{gap:.2g}" for gap in gaps]
        lines.append(row([leak["routing"], str(leak["alike"]), *told]))
    return lines


def bodies(result: Result) -> Lines:
    """The mixture of each routing, as it was sent."""
    lines = [row(("routing", "mixture")), row(("---", "---"))]
    for routing in result["suite"]["routing"]:
        if "by_task" in routing:
            pairs = ", ".join(f"{task}: {name}" for task, name in routing["by_task"].items())
            text = f"by task: {pairs}"
        else:
            text = f"`{json.dumps(routing['mixture'])}`" if "mixture" in routing else "none"
        lines.append(row([routing["name"], text]))
    return lines


def tuning(result: Result) -> Lines:
    """What was tried on train rows, and what was chosen."""
    lines: Lines = []
    for family, tried in result["families"].items():
        names = list(tried["chosen"])
        lines += ["", f"*{family}*:", "", row([*names, "NLL"]), row(["--:"] * (len(names) + 1))]
        for entry in sorted(tried["grid"], key=lambda one: float(one["nll"])):
            values = [str(entry["params"][name]) for name in names]
            mark = "**" if entry["params"] == tried["chosen"] else ""
            lines.append(row([*values, f"{mark}{entry['nll']:.4f}{mark}"]))
    return lines[1:]


def tuning_markdown(result: Result) -> str:
    """A tuning run as a page."""
    head = ["# `adaptermix eval --tune`", "", provenance(result), ""]
    return "\n".join([*head, *tuning(result), ""])


def _column(result: Result, task: str, measure: str) -> Mapping[str, Any] | None:
    found = (c for c in result["measures"] if (c["task"], c["measure"]) == (task, measure))
    return next(found, None)


def _routings(result: Result, columns: Sequence[Mapping[str, Any]]) -> Lines:
    """Those of any of the columns, in the order of the suite."""
    names = [routing["name"] for routing in result["suite"]["routing"]]
    return [name for name in names if any(name in column["routings"] for column in columns)]


def _rows(column: Mapping[str, Any]) -> str:
    counts = {cell["rows"] for cell in column["routings"].values()}
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}-{high}"


def _interval(cell: Mapping[str, float] | None, scale: float = 1) -> str:
    if cell is None:
        return _NONE
    digits = 3 if scale == 1 else 1
    mean, low, high = (f"{scale * cell[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _gap(cell: Mapping[str, float] | None, digits: int) -> str:
    """Bold where the interval excludes 0."""
    if cell is None:
        return _NONE
    mean, low, high = (f"{cell[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if cell["low"] > 0 or cell["high"] < 0 else text


def _speed(result: Result, name: str) -> str:
    speed = result["speed"].get(name)
    if speed is None:
        return _NONE
    return f"{speed['relative']:.2f} ({speed['low']:.2f}-{speed['high']:.2f})"


def _weights(result: Result, task: Mapping[str, str], name: str) -> str:
    """The mean weight of the first task's adapter in the first part and in the second."""
    found = result["weights"].get(task["name"], {}).get(name, {}).get(task["first"])
    return _NONE if found is None else f"{found[0]:.2f}, then {found[-1]:.2f}"


SECTIONS: Mapping[str, Callable[[Result], Lines]] = {
    "What it says": verdicts,
    "NLL in nats per completion token": table,
    "Differences of the average NLL": differences,
    "Scores of the answers in per cent": scores,
    "Prompts that need two skills": mixed,
    "The first tokens alone": opening,
    "What the weights know": leaks,
    "Mixtures": bodies,
}
