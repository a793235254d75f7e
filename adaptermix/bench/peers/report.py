"""The page of a run beside the peers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from adaptermix.bench.report import NUMBERS, numbers, provenance, row


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
    settings, rounds = result["settings"], result["timing"]["round_seconds"] or [0.0]
    lines += [
        "",
        f"Ratios are those of the medians of {len(rounds)} rounds, all systems in turn; a peer "
        "that has no turn is stopped. Throughput is output tokens a second with the prefill of the "
        f"prompts in it: prompts of 48 to 80 tokens, {settings['new_tokens']} new tokens, greedy, "
        "none ended early. All systems are given the same requests and all cores. A round of a "
        "cell is one request a client, again and again for "
        f"{settings['cell_seconds']:g} s by those who are faster than that. "
        "Against peers the adapters have rank 16 on all seven linear layers, else rank 8 on q, k, "
        f"v, o. A round of everything took {statistics.median(rounds):.0f} s.",
        "",
    ]
    for name, versions in result["versions"].items():
        listed = ", ".join(f"{package} {number}" for package, number in versions.items())
        lines.append(f"- {name}: {listed}")
    for name, reason in result["missing"].items():
        lines.append(f"- {name} is missing: {' '.join(reason.splitlines()[:2])}")
    heads = ["system", "adapters", "case", "clients", "requests a round", *NUMBERS]
    lines += ["", row(heads), row(["---"] * 3 + ["--:"] * (len(heads) - 3))]
    for cell in result["cells"]:
        names = [cell["system"], cell["suite"], cell["title"], cell["load"]]
        lines.append(row([*names, str(cell["requests_per_round"]), *numbers(cell)]))
    return "\n".join([*lines, ""])
