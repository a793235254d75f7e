"""The run as a page: the three targets, and what the steps are made of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from adaptermix.bench.goals import GOALS
from adaptermix.bench.verdicts import judge

_GPU_GOALS = tuple(goal for goal in GOALS if (goal.scalar or "").startswith("gpu_"))


def markdown(result: Mapping[str, Any]) -> str:
    """Targets met or missed, and a row a case."""
    machine, plan = result["machine"], result["plan"]
    sizes = plan["sizes"]
    lines = [
        "# Decode steps on a GPU",
        "",
        f"{machine['gpu'] or 'no GPU: ' + machine['processor']}, torch {result['torch']}, "
        f"shape {plan['shape']} in {result['dtype']}, {sizes['requests']} requests, context "
        f"{sizes['context']}, adapters of rank 16 on {plan['targets']} linears, medians of "
        f"{plan['rounds']} rounds of {sizes['steps']} steps.",
        "",
        "| target | bound | measured | |",
        "|---|---|---|---|",
    ]
    for goal in _GPU_GOALS:
        verdict = judge(goal, {}, result["scalars"] if machine["gpu"] else {})
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}x"
        value = "-" if verdict.value is None else f"{verdict.value:.2f}x"
        said = verdict.status if machine["gpu"] else "not run on a GPU"
        lines.append(f"| {goal.what} | {bound} | {value} | {said} |")
    lines += [
        "",
        f"Floor: {result['weight_bytes'] / 1e9:.2f} GB of weights at "
        f"{result['bandwidth'] / 1e12:.2f} TB/s (a copy, reading and writing counted) = "
        f"{1000 * result['floor_seconds']:.2f} ms.",
        "",
        "| case | step, ms | of it the graph, ms | tokens/s |",
        "|---|---|---|---|",
    ]
    for case, turns in result["steps"].items():
        step = statistics.median(statistics.median(turn["seconds"]) for turn in turns)
        graphs = [turn["device_seconds"] for turn in turns if turn["device_seconds"] is not None]
        graph = f"{1000 * statistics.median(graphs):.2f}" if graphs else "-"
        lines.append(f"| {case} | {1000 * step:.2f} | {graph} | {sizes['requests'] / step:.0f} |")
    if result["peft_step_seconds"]:
        step = statistics.median(result["peft_step_seconds"])
        rate = sizes["requests"] / step
        lines.append(f"| PEFT `adapter_names`, eight | {1000 * step:.2f} | - | {rate:.0f} |")
    return "\n".join(lines) + "\n"
