"""The page of a soak, and its part of the page on reliability."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from adaptermix.bench.report import provenance, row, table_head
from adaptermix.bench.soak.record import ASKED_FOR, EXPECTED
from adaptermix.bench.verdicts import Goal, Status, Verdict, judge_value

Result = Mapping[str, Any]
_STATUS = {True: "yes", False: "**no**", None: "too short to say"}
_MIB = 1 << 20
MEMORY_GROWTH = 0.05  # as a share of what it was
_HOLDS: Mapping[Status, bool | None] = {"met": True, "missed": False, "open": None}


def markdown(result: Result) -> str:
    """The page of a soak: its origin, its promises, then every count."""
    lines = ["# Soak", "", *origin(result), "", *promises(result), "", *counts(result), ""]
    for name, examples in result["requests"]["examples"].items():
        lines += [f"- {name}: {example}" for example in examples]
    return "\n".join([*lines, ""])


def origin(result: Result) -> list[str]:
    """Machine, commit, load and pools."""
    settings, load = result["settings"], result["load"]
    before, after = load["before"][0], load["after"][0]
    # Results from before adapters were counted in bytes have rows.
    rows = settings.get("rank_rows")
    room = f"{rows} rank rows" if rows else f"memory for {settings['on_device']} of them"
    text = (
        f"{result['seconds'] / 60:.0f} minutes, {settings['clients']} clients, "
        f"{settings['adapters']} adapters and six that come and go or move; "
        f"{room}, {settings['kv_blocks']} KV blocks; a fault after "
        f"every {settings['every']} answers, none in the last {settings['calm']:.0%} of the run; "
        f"patience {settings['patience']:g} s; seed {settings['seed']}. The machine's load average "
        f"was {before:.2f} before and {after:.2f} at the end."
    )
    return [provenance(result), "", text]


def promises(result: Result) -> list[str]:
    """Each promise, what was found, and whether it held."""
    lines = table_head(("promise", "found", "kept"), (0, 2))
    return lines + [
        row((verdict["promise"], verdict["found"], _STATUS[verdict["holds"]]))
        for verdict in result["verdicts"]
    ]


def verdicts(result: Result) -> list[dict[str, Any]]:
    """Promises of a soak, from its result: {promise, found, holds}; None where it cannot say."""
    counts, after, faults = result["requests"], result["after"], result["faults"]
    back = [fault for fault in faults if fault["recovered"]]
    unseen = [fault for fault in faults if fault["ready_lost"] is False]
    judged = [
        _none("wrong answers", counts["wrong"]),
        _none("lost requests", counts["lost"] + counts["unaccounted"]),
        _none("errors that are not documented for it", counts["undocumented"]),
        _forced(result["counters"]),
        judge_value(
            Goal("a process that was killed or stopped is replaced", 1),
            len(back) / len(faults) if faults else None,
            note=f"{len(back)} of {len(faults)}",
        ),
        _none("engines that were away while /health/ready said 200", len(unseen)),
        *(_growth(line) for line in result["memory"] if line["judged"]),
        _none(
            "KV blocks and rank rows in use, requests in the engine", sum(after["pools"].values())
        ),
        _none("processes left behind", len(after["processes"])),
        _none("temporary files left behind", len(after["files"])),
        _none("exceptions in the log", after["exceptions"]),
        judge_value(
            Goal("the server ends with 0 after SIGTERM", 1),
            float(after["exit"] == 0),
            note=str(after["exit"]),
        ),
    ]
    return [
        {"promise": verdict.goal.what, "found": verdict.note, "holds": _HOLDS[verdict.status]}
        for verdict in judged
    ]


def _forced(counters: Mapping[str, float]) -> Verdict:
    """A soak without them would have kept its promises too easily."""
    counts = {name: counters.get(name, 0.0) for name in ("preemptions", "evictions", "merges")}
    note = ", ".join(f"{count:,.0f}" for count in counts.values())
    goal = Goal(f"there were {', '.join(counts)}", 1)
    return judge_value(goal, sum(count > 0 for count in counts.values()) / len(counts), note=note)


def _none(what: str, count: float) -> Verdict:
    return judge_value(Goal(f"no {what}", 0, at_least=False), count, note=f"{count:g}")


def _growth(line: Mapping[str, Any]) -> Verdict:
    growth = line["growth"]
    promise = f"memory of the {line['role']} within {MEMORY_GROWTH:.0%}"
    note = "too short a run" if growth is None else f"{growth:+.1%}"
    return judge_value(Goal(promise, MEMORY_GROWTH, at_least=False), growth, note=note)


def counts(result: Result) -> list[str]:
    """Requests by their end, faults, memory and what the small pools caused."""
    return [*_ends(result), "", *_faults(result), "", *_memory(result), "", _counters(result)]


def _ends(result: Result) -> list[str]:
    requests = result["requests"]
    lines = table_head(("how requests ended", "count"))
    lines.append(
        row(
            (
                f"answered, and compared with a reference ({_kinds(requests)})",
                _n(requests["answers"]),
            )
        )
    )
    lines.append(
        row(("of these with a tie, after which nothing is compared", _n(requests["ties"])))
    )
    lines.append(row(("the client went away", _n(requests["left"]))))
    for name, count in sorted(requests["errors"].items()):
        kind = name.split()[-1]
        meaning = (EXPECTED | ASKED_FOR)[kind]
        lines.append(row((f"`{name}`: {meaning}", _n(count))))
    for name in ("wrong", "lost", "undocumented"):
        lines.append(row((name, _n(requests[name]))))
    text = (
        f"An answer may differ by {requests['tolerance']:g} nats in a log probability; the largest "
        f"difference was {requests['largest_difference']:.1e}. The longest request took "
        f"{requests['longest_seconds']:.1f} s."
    )
    return [*lines, "", text]


def _kinds(requests: Mapping[str, Any]) -> str:
    kinds = {name.partition(" on ")[0] for name in requests["by_kind"]}
    routes = {name.partition(" on ")[2] for name in requests["by_kind"]}
    return f"{len(kinds)} kinds of mixture, {len(routes)} routes"


def _faults(result: Result) -> list[str]:
    heads = ("fault", "times", "replaced", "seconds until it was ready, median", "longest")
    lines = table_head(heads)
    kinds = sorted({(fault["role"], fault["what"]) for fault in result["faults"]})
    for role, what in kinds:
        alike = [o for o in result["faults"] if (o["role"], o["what"]) == (role, what)]
        times = [fault["seconds"] for fault in alike if fault["seconds"] is not None]
        shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        lines.append(row((f"{role}, {what}", _n(len(alike)), _n(len(times)), *shown)))
    return lines


def _memory(result: Result) -> list[str]:
    heads = ("process", "lives", "longest life, s", "MiB at its begin", "at its end", "growth")
    lines = table_head(heads)
    for life in result["memory"]:
        if life["judged"]:
            lives = sum(other["role"] == life["role"] for other in result["memory"])
            sizes = (f"{life[key] / _MIB:.0f}" for key in ("first_bytes", "last_bytes"))
            growth = "-" if life["growth"] is None else f"{life['growth']:+.1%}"
            lines.append(row((life["role"], _n(lives), _n(life["samples"]), *sizes, growth)))
    text = (
        "Resident memory, of the longest life of each process. Growth: the median of its last "
        "fifth over that of its first, the first minute left aside."
    )
    return [*lines, "", text]


def _counters(result: Result) -> str:
    told = ", ".join(f"{_n(count)} {name}" for name, count in result["counters"].items())
    admin = sum(count for name, count in result["requests"]["admin"].items() if "done" in name)
    return f"Meanwhile: {told}; {_n(admin)} actions of an admin."


def _n(count: float) -> str:
    return f"{count:,.0f}"
