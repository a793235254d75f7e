"""The page of a soak, and its part of the page on reliability."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from adaptermix.bench.performance import Figures, fill
from adaptermix.bench.report import provenance, row
from adaptermix.bench.soak.ledger import ASKED_FOR, EXPECTED

Result = Mapping[str, Any]
COMMAND = "adaptermix bench soak"
_STATUS = {True: "yes", False: "**no**", None: "too short to say"}
_MIB = 1 << 20


def markdown(result: Result) -> str:
    """Where it ran, what held, then every count."""
    lines = ["# Soak", "", *origin(result), "", *promises(result), "", *counts(result), ""]
    for name, examples in result["requests"]["examples"].items():
        lines += [f"- {name}: {example}" for example in examples]
    return "\n".join([*lines, ""])


def filled(page: str, results: Path, pictures: str) -> str:
    """The page on reliability with its figures: see `adaptermix.bench.performance.fill`."""
    return fill(page, results, pictures, FIGURES, {})


def origin(result: Result) -> list[str]:
    """Machine, commit, load and pools."""
    settings, load = result["settings"], result["load"]
    before, after = load["before"][0], load["after"][0]
    text = (
        f"{result['seconds'] / 60:.0f} minutes, {settings['clients']} clients, "
        f"{settings['adapters']} adapters and six that come and go or move; "
        f"{settings['rank_rows']} rank rows, {settings['kv_blocks']} KV blocks; a fault after "
        f"every {settings['every']} answers, none in the last {settings['calm']:.0%} of the run; "
        f"patience {settings['patience']:g} s; seed {settings['seed']}. The machine's load average "
        f"was {before:.2f} before and {after:.2f} at the end."
    )
    return [provenance(result), "", text]


def promises(result: Result) -> list[str]:
    """Each promise, what was found, and whether it held."""
    lines = [row(("promise", "found", "kept")), row(("---", "--:", "---"))]
    return lines + [
        row((one["promise"], one["found"], _STATUS[one["holds"]])) for one in result["verdicts"]
    ]


def counts(result: Result) -> list[str]:
    """Requests by their end, faults, memory and what the small pools caused."""
    return [*_ends(result), "", *_faults(result), "", *_memory(result), "", _counters(result)]


def _ends(result: Result) -> list[str]:
    found = result["requests"]
    lines = [row(("how requests ended", "count")), row(("---", "--:"))]
    lines.append(
        row((f"answered, and compared with a reference ({_kinds(found)})", _n(found["answers"])))
    )
    lines.append(row(("of these with a tie, after which nothing is compared", _n(found["ties"]))))
    lines.append(row(("the client went away", _n(found["left"]))))
    for name, count in sorted(found["errors"].items()):
        kind = name.split()[-1]
        meaning = (EXPECTED | ASKED_FOR)[kind]
        lines.append(row((f"`{name}`: {meaning}", _n(count))))
    for name in ("wrong", "lost", "undocumented"):
        lines.append(row((name, _n(found[name]))))
    text = (
        f"An answer may differ by {found['tolerance']:g} nats in a log probability; the largest "
        f"difference was {found['largest_difference']:.1e}. The longest request took "
        f"{found['longest_seconds']:.1f} s."
    )
    return [*lines, "", text]


def _kinds(found: Mapping[str, Any]) -> str:
    kinds = {name.partition(" on ")[0] for name in found["by_kind"]}
    routes = {name.partition(" on ")[2] for name in found["by_kind"]}
    return f"{len(kinds)} kinds of mixture, {len(routes)} routes"


def _faults(result: Result) -> list[str]:
    heads = ("fault", "times", "replaced", "seconds until it was ready, median", "longest")
    lines = [row(heads), row(("---", *["--:"] * 4))]
    kinds = sorted({(one["role"], one["what"]) for one in result["faults"]})
    for role, what in kinds:
        found = [o for o in result["faults"] if (o["role"], o["what"]) == (role, what)]
        times = [one["seconds"] for one in found if one["seconds"] is not None]
        shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        lines.append(row((f"{role}, {what}", _n(len(found)), _n(len(times)), *shown)))
    return lines


def _memory(result: Result) -> list[str]:
    heads = ("process", "lives", "longest life, s", "MiB at its begin", "at its end", "growth")
    lines = [row(heads), row(("---", *["--:"] * 5))]
    for one in result["memory"]:
        if one["judged"]:
            lives = sum(other["role"] == one["role"] for other in result["memory"])
            sizes = (f"{one[key] / _MIB:.0f}" for key in ("first_bytes", "last_bytes"))
            growth = "-" if one["growth"] is None else f"{one['growth']:+.1%}"
            lines.append(row((one["role"], _n(lives), _n(one["samples"]), *sizes, growth)))
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


FIGURES: Figures = {
    "soak": ("soak", COMMAND, lambda result: [*origin(result), "", *promises(result)]),
    "soak_counts": ("soak", COMMAND, counts),
}
