"""The page of a run beside busy loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptermix.bench.peers.report import goal_table
from adaptermix.bench.report import missing_lines, provenance, row


def markdown(result: Mapping[str, Any]) -> str:
    """The target, then a row for each system and number of loops."""
    settings = result["settings"]
    heads = ("system", "busy loops", "tokens/s", "over rounds", "of alone")
    lines = ["# Beside busy loops", "", provenance(result), "", *goal_table(result["goals"]), ""]
    lines += [
        f"{settings['clients']} clients, {settings['new_tokens']} new tokens each, the base model; "
        f"medians of {settings['rounds']} rounds, systems in turn. A busy loop is a process that "
        "spins. Who has no turn is stopped, or sleeps.",
        "",
        *missing_lines(result["missing"]),
        "",
        row(heads),
        row(["---", *["--:"] * 4]),
    ]
    for cell in result["cells"]:
        values = cell["tokens_per_second_rounds"]
        shown = _shown(cell["share_of_alone"])
        rate, spread = f"{cell['tokens_per_second']:.1f}", f"{min(values):.1f}-{max(values):.1f}"
        lines.append(row([cell["system"], str(cell["loops"]), rate, spread, shown]))
    return "\n".join([*lines, ""])


def share_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each system as a share of itself alone, by the number of busy loops."""
    loops = sorted({cell["loops"] for cell in cells})
    lines = [row(["busy loops", *map(str, loops)]), row(["---", *["--:"] * len(loops)])]
    for system in dict.fromkeys(cell["system"] for cell in cells):
        share = {c["loops"]: c["share_of_alone"] for c in cells if c["system"] == system}
        lines.append(row([system, *(_shown(share.get(count)) for count in loops)]))
    return lines


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"
