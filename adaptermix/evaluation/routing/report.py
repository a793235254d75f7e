"""The result of `adaptermix eval` as Markdown: what it says, its tables, and its origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adaptermix.bench.report import provenance, row, table_head
from adaptermix.bench.verdicts import Status, judge_interval
from adaptermix.evaluation.intervals import NONE, difference, interval
from adaptermix.evaluation.routing.results import (
    AVERAGE,
    FIRST_NLL,
    NLL,
    NLLS,
    OPENING_NLL,
    SCORE,
    SECOND_NLL,
)

Result = Mapping[str, Any]
Gap = Mapping[str, Any]
_WORDS: Mapping[Status, str] = {"met": "better", "missed": "worse", "open": "not told apart"}


def verdicts(result: Result) -> list[str]:
    """One point a question. A difference counts where its 95 % interval excludes 0."""
    return [
        *_against(result, "to_base", "Does token-level routing beat the base?"),
        *_against(result, "to_singles", "Does it beat the mean of the single adapters?"),
        *_cadence(result),
        *_level(result),
        *_context(result),
        *_switch(result),
    ]


def _against(result: Result, to: str, question: str) -> Iterator[str]:
    """All token-level routings against one reference, on the average NLL."""
    column = _average(result)
    gaps = {name: column[name][to] for name in _token_level(result) if to in column.get(name, {})}
    if not gaps:
        yield f"* **{question}** Not measured in this run."
        return
    lower = [name for name, gap in gaps.items() if gap["high"] < 0]
    answer = "Yes" if len(lower) == len(gaps) else ("In part" if lower else "No")
    told = [f"{name} {_told(gap)}" for name, gap in gaps.items()]
    yield (
        f"* **{question}** {answer}: the average NLL of {len(lower)} of {len(gaps)} is lower, "
        f"with an interval that excludes 0. Differences in nats a token: {'; '.join(told)}."
    )


def _cadence(result: Result) -> Iterator[str]:
    question = "Is every second token the best cadence?"
    comparisons = _of_kind(result, "cadence")
    if not comparisons:
        yield f"* **{question}** Not measured in this run."
    for ours in dict.fromkeys(gap["ours"] for gap in comparisons):
        gaps = [gap for gap in comparisons if gap["ours"] == ours]
        if all(gap["high"] < 0 for gap in gaps):
            answer = "Yes"
        elif any(gap["low"] > 0 for gap in gaps):
            better = [gap["theirs"] for gap in gaps if gap["low"] > 0]
            answer = f"No: better is {' and '.join(better)}"
        else:
            answer = "It cannot be told apart from all others"
        told = [f"{_told(gap)} to {gap['theirs']}" for gap in gaps]
        yield f"* **{question}** *{ours}*: {answer}. {'; '.join(told)}."


def _level(result: Result) -> Iterator[str]:
    comparisons = _of_kind(result, "level")
    for pair in dict.fromkeys((gap["ours"], gap["theirs"]) for gap in comparisons):
        told = []
        for gap in comparisons:
            if (gap["ours"], gap["theirs"]) == pair:
                what = "the average" if gap["task"] == AVERAGE else f"*{gap['task']}*"
                measure = "" if gap["measure"] == NLL else f", {gap['measure']}"
                told.append(f"on {what}{measure} {_told(gap)}, {_says(gap)}")
        yield (
            f"* **Weights for every token against weights for the request.** *{pair[0]}* to "
            f"*{pair[1]}*: {'; '.join(told)}."
        )


def _context(result: Result) -> Iterator[str]:
    question = "What does recomputing the context give over keeping it?"
    comparisons = _of_kind(result, "context")
    if not comparisons:
        yield f"* **{question}** Not measured in this run."
    for gap in comparisons:
        yield (
            f"* **{question}** *{gap['ours']}* to *{gap['theirs']}*, on the first tokens of "
            f"{gap['rows']} completions: {_told(gap)}, {_says(gap)}."
        )


def _switch(result: Result) -> Iterator[str]:
    """Mixed prompts: those who may change in mid-answer, and the best of those who may not."""
    comparisons = _of_kind(result, "switch")
    for task in dict.fromkeys(gap["task"] for gap in comparisons):
        gaps = [gap for gap in comparisons if gap["task"] == task]
        told = [f"{gap['ours']} {_told(gap)}, {_says(gap)}" for gap in gaps]
        best = gaps[0]["theirs"]
        yield (
            f"* **Does switching within an answer pay on *{task}*?** Against *{best}*, the best of "
            f"all that keep one mixture (chosen on these same rows): {'; '.join(told)}."
        )


def _average(result: Result) -> Mapping[str, Any]:
    for column in result["measures"]:
        if (column["task"], column["measure"]) == (AVERAGE, NLL):
            routings: Mapping[str, Any] = column["routings"]
            return routings
    return {}


def _token_level(result: Result) -> Sequence[str]:
    """Those whose weights change within an answer, by a router of the text."""
    names = []
    for routing in result["suite"]["routing"]:
        router = routing.get("mixture", {}).get("router", {})
        if router.get("level") in ("token", "layer") and router.get("context") != "recompute":
            names.append(routing["name"])
    return names


def _of_kind(result: Result, kind: str) -> list[Gap]:
    return [gap for gap in result["comparisons"] if gap["kind"] == kind]


def _told(gap: Gap) -> str:
    return interval(gap, sign="+")


def _says(gap: Gap) -> str:
    return _WORDS[judge_interval(gap["low"], gap["high"])]


Lines = list[str]


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
    lines = table_head(heads)
    for name in _routings(result, columns):
        cells = [interval(c["routings"].get(name)) for c in columns]
        lines.append(row([name, *cells, _speed(result, name)]))
    return lines


def differences(result: Result) -> Lines:
    """Differences of each routing to the base and to the mean of the single adapters."""
    column = _column(result, AVERAGE, NLL)
    if not column:
        return []
    heads = ("routing", "to the base", "to the mean of the single adapters", "rows")
    lines = table_head(heads)
    for name, cell in column["routings"].items():
        gaps = [difference(cell.get(to)) for to in ("to_base", "to_singles")]
        if gaps != [NONE, NONE]:
            lines.append(row([name, *gaps, str(cell["rows"])]))
    return lines


def scores(result: Result) -> Lines:
    """Scores of the answers, in per cent."""
    columns = [
        c
        for c in result["measures"]
        if c["measure"] not in NLLS and (c["task"] != AVERAGE or c["measure"] == SCORE)
    ]
    if not columns:
        return []
    heads = ["routing", *(f"{c['task']}: {c['measure']}, rows {_rows(c)}" for c in columns)]
    lines = table_head(heads)
    for name in _routings(result, columns):
        cells = [interval(c["routings"].get(name), scale=100) for c in columns]
        lines.append(row([name, *cells]))
    return lines


def mixed(result: Result) -> Lines:
    """NLL of prompts that need two skills: whole, and each of the two answers in them."""
    lines: Lines = []
    for task in result["suite"].get("mixed", []):
        columns = [_column(result, task["name"], m) for m in (NLL, FIRST_NLL, SECOND_NLL)]
        measured = [column for column in columns if column]
        if not measured:
            continue
        parts = ("whole", f"{task['first']} part", f"{task['second']} part")
        heads = ["routing", *parts, "to the base, whole", f"weight on {task['first']}"]
        lines += ["", f"*{task['name']}*, rows {_rows(measured[0])}:", ""]
        lines += table_head(heads)
        for name in _routings(result, measured):
            cells = [interval(column["routings"].get(name)) for column in measured]
            gap = difference(measured[0]["routings"][name].get("to_base"))
            lines.append(row([name, *cells, gap, _weights(result, task, name)]))
    return lines[1:]


def opening(result: Result) -> Lines:
    """NLL of the first tokens of each completion: what all routings can be compared on."""
    column = _column(result, AVERAGE, OPENING_NLL)
    if not column:
        return []
    lines = table_head(("routing", "NLL", "to the base", "rows"))
    for name, cell in column["routings"].items():
        gap = difference(cell.get("to_base"))
        lines.append(row([name, interval(cell), gap, str(cell["rows"])]))
    return lines


def leaks(result: Result) -> Lines:
    """Differences of weights that have the same text before them."""
    heads = ("routing", "tokens alike", "weights there", "log probabilities there")
    lines = table_head((*heads, "weights afterwards"))
    for leak in result["leaks"]:
        gaps = [leak["weights"], leak["logprobs"], leak["later"]]
        told = [NONE if gap is None else f"{gap:.2g}" for gap in gaps]
        lines.append(row([leak["routing"], str(leak["alike"]), *told]))
    return lines


def bodies(result: Result) -> Lines:
    """The mixture of each routing, as it was sent."""
    lines = table_head(("routing", "mixture"), (0, 1))
    for routing in result["suite"]["routing"]:
        if "by_task" in routing:
            pairs = ", ".join(f"{task}: {name}" for task, name in routing["by_task"].items())
            text = f"by task: {pairs}"
        else:
            text = f"`{json.dumps(routing['mixture'])}`" if "mixture" in routing else "none"
        lines.append(row([routing["name"], text]))
    return lines


def tuning(result: Result) -> Lines:
    """The parameters tried on train rows, and those chosen."""
    lines: Lines = []
    for family, tried in result["families"].items():
        names = list(tried["chosen"])
        lines += ["", f"*{family}*:", "", *table_head([*names, "NLL"], ())]
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
    matching = (c for c in result["measures"] if (c["task"], c["measure"]) == (task, measure))
    return next(matching, None)


def _routings(result: Result, columns: Sequence[Mapping[str, Any]]) -> Lines:
    """Those of any of the columns, in the order of the suite."""
    names = [routing["name"] for routing in result["suite"]["routing"]]
    return [name for name in names if any(name in column["routings"] for column in columns)]


def _rows(column: Mapping[str, Any]) -> str:
    counts = {cell["rows"] for cell in column["routings"].values()}
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}-{high}"


def _speed(result: Result, name: str) -> str:
    speed = result["speed"].get(name)
    if speed is None:
        return NONE
    return f"{speed['relative']:.2f} ({speed['low']:.2f}-{speed['high']:.2f})"


def _weights(result: Result, task: Mapping[str, str], name: str) -> str:
    """The mean weight of the first task's adapter in the first part and in the second."""
    parts = result["weights"].get(task["name"], {}).get(name, {}).get(task["first"])
    return NONE if parts is None else f"{parts[0]:.2f}, then {parts[-1]:.2f}"


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
