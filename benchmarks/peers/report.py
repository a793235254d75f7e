"""The page of a run beside the peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report import NUMBERS, numbers, provenance, row


def goal_table(goals: list[Mapping[str, Any]]) -> list[str]:
    """One row a target: what was asked, what came out, and whether that is enough."""
    heads = ("what", "target", "measured", "over rounds", "")
    lines = [row(heads), row(["---", *["--:"] * 3, "---"])]
    for verdict in goals:
        goal, value = verdict["goal"], verdict["value"]
        sign = "at least" if goal["at_least"] else "at most"
        shown, spread = "-", "-"
        if value is not None:
            shown = f"{value:.2f}{goal['unit']}"
            spread = f"{verdict['low']:.2f}-{verdict['high']:.2f}"
        status = f"**{verdict['status']}**" if verdict["status"] == "missed" else verdict["status"]
        note = f"{status}: {verdict['note']}" if verdict["note"] else status
        target = f"{sign} {goal['bound']:g}{goal['unit']}"
        lines.append(row([goal["what"], target, shown, spread, note]))
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """Targets first, then every cell."""
    lines = ["# AdapterMix beside its peers", "", provenance(result), ""]
    lines += goal_table(result["goals"])
    settings = result["settings"]
    lines += [
        "",
        f"Ratios are those of the medians of {settings['rounds']} rounds, all systems in turn; a "
        "system that has no turn is stopped. Throughput is output tokens a second with the "
        "prefill of the prompts in it: prompts of 48 to 80 tokens, "
        f"{settings['new_tokens']} new tokens, greedy. "
        "Against peers the adapters have rank 16 on all seven linear layers, else rank 8 on q, k, "
        "v, o.",
        "",
    ]
    for name, versions in result["versions"].items():
        listed = ", ".join(f"{package} {number}" for package, number in versions.items())
        lines.append(f"- {name}: {listed}")
    for name, reason in result["missing"].items():
        lines.append(f"- {name} is missing: {reason.splitlines()[0]}")
    heads = ["system", "adapters", "case", "clients", *NUMBERS]
    lines += ["", row(heads), row(["---"] * 3 + ["--:"] * (len(heads) - 3))]
    for cell in result["cells"]:
        names = [cell["system"], cell["suite"], cell["title"], cell["load"]]
        lines.append(row([*names, *numbers(cell)]))
    return "\n".join([*lines, ""])
