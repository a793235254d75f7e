"""The page of a run beside busy loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.peers.report import goal_table
from benchmarks.report import provenance, row


def markdown(result: Mapping[str, Any]) -> str:
    """The target, then a row for each system and number of loops."""
    settings = result["settings"]
    missing = result["missing"].items()
    heads = ("system", "busy loops", "tokens/s", "over rounds", "of alone")
    lines = ["# Beside busy loops", "", provenance(result), "", *goal_table(result["goals"]), ""]
    lines += [
        f"{settings['clients']} clients, {settings['new_tokens']} new tokens each, the base model; "
        f"medians of {settings['rounds']} rounds, systems in turn. A busy loop is a process that "
        "spins. Who has no turn is stopped, or sleeps.",
        "",
        *(f"- {name} is missing: {' '.join(why.split())}" for name, why in missing),
        "",
        row(heads),
        row(["---", *["--:"] * 4]),
    ]
    for cell in result["cells"]:
        values = cell["tokens_per_second_rounds"]
        share = cell["share_of_alone"]
        shown = "-" if share is None else f"{share:.2f}"
        rate, spread = f"{cell['tokens_per_second']:.1f}", f"{min(values):.1f}-{max(values):.1f}"
        lines.append(row([cell["system"], str(cell["loops"]), rate, spread, shown]))
    return "\n".join([*lines, ""])
