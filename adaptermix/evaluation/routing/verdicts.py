"""What reproduces and what does not, told from the intervals alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptermix.evaluation.routing.series import AVERAGE, NLL

Result = Mapping[str, Any]
Gap = Mapping[str, Any]


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
    found = _of_kind(result, "cadence")
    if not found:
        yield f"* **{question}** Not measured in this run."
    for ours in dict.fromkeys(gap["ours"] for gap in found):
        gaps = [gap for gap in found if gap["ours"] == ours]
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
    found = _of_kind(result, "level")
    for pair in dict.fromkeys((gap["ours"], gap["theirs"]) for gap in found):
        told = []
        for gap in found:
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
    found = _of_kind(result, "context")
    if not found:
        yield f"* **{question}** Not measured in this run."
    for gap in found:
        yield (
            f"* **{question}** *{gap['ours']}* to *{gap['theirs']}*, on the first tokens of "
            f"{gap['rows']} completions: {_told(gap)}, {_says(gap)}."
        )


def _switch(result: Result) -> Iterator[str]:
    """Mixed prompts: those who may change in mid-answer, and the best of those who may not."""
    found = _of_kind(result, "switch")
    for task in dict.fromkeys(gap["task"] for gap in found):
        gaps = [gap for gap in found if gap["task"] == task]
        told = [f"{gap['ours']} {_told(gap)}, {_says(gap)}" for gap in gaps]
        best = gaps[0]["theirs"]
        yield (
            f"* **Does switching within an answer pay on *{task}*?** Against *{best}*, the best of "
            f"all that keep one mixture (chosen on these same rows): {'; '.join(told)}."
        )


def _average(result: Result) -> Mapping[str, Any]:
    for column in result["measures"]:
        if (column["task"], column["measure"]) == (AVERAGE, NLL):
            found: Mapping[str, Any] = column["routings"]
            return found
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
    return f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"


def _says(gap: Gap) -> str:
    if gap["high"] < 0:
        return "better"
    return "worse" if gap["low"] > 0 else "not told apart"
