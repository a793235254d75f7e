"""Scalars of the targets (`adaptermix.bench.goals`) from what the phases have found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.churn import CLOSED_LOOP
from benchmarks.gpu.peft import EIGHT
from benchmarks.gpu.prefill import prefill_name
from benchmarks.gpu.settings import CardSizes
from benchmarks.gpu.steps import step_name
from benchmarks.gpu.work import CardBatch

Found = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By phase and cell: what those cells have found that were measured."""


def scalars(found: Found, sizes: CardSizes) -> dict[str, list[float]]:
    """One value a round; what was not measured is not there."""
    batch = CardBatch(*sizes.goal)
    base, mixtures = _steps(found, "base", batch), _steps(found, "mixtures", batch)
    eight = _steps(found, "eight", batch)
    long = _steps(found, "base", CardBatch(*sizes.goal, first=sizes.long_context))
    graph = _graphs(found, "base", batch)
    floor = floor_seconds(found)
    peft = _cell(found, "peft", EIGHT).get("seconds", [])
    prompts = _cell(found, "prefill", prefill_name("base", batch))
    loop = _cell(found, "churn", CLOSED_LOOP)
    values: dict[str, list[float]] = {
        "gpu_step_over_floor": [step / floor for step in base if floor],
        "gpu_graph_over_floor": [step / floor for step in graph if floor],
        "gpu_mixtures_over_base": _ratios(mixtures, base),
        "gpu_graph_mixtures_over_base": _ratios(_graphs(found, "mixtures", batch), graph),
        "gpu_long_over_short": _ratios(long, base),
        "gpu_prefill": [prompts["tokens"] / each for each in prompts.get("seconds", ())],
        "gpu_arrivals_over_steady": [
            turn["arrivals"]["median"] / turn["steady"]["median"] for turn in loop.get("turns", ())
        ],
        "gpu_late_builds": [loop["compiles"] + loop["captures"]] if loop else [],
        "gpu_over_peft": [statistics.median(peft) / step for step in eight if peft],
    }
    return {name: each for name, each in values.items() if each}


def floor_seconds(found: Found) -> float | None:
    """Seconds in which the memory gives all weights that a step reads; None where unknown."""
    speed = _cell(found, "steps", "bandwidth").get("bytes_a_second")
    weights = [cell["weight_bytes"] for cell in found.get("steps", {}).values() if "turns" in cell]
    return weights[0] / speed if speed and weights else None


def step_seconds(cell: Mapping[str, Any]) -> list[float]:
    """The median step of each turn of a cell of `steps`."""
    return [statistics.median(turn["seconds"]) for turn in cell.get("turns", ())]


def graph_seconds(cell: Mapping[str, Any]) -> list[float]:
    """The graph alone, in each turn; none where there are no graphs."""
    turns = cell.get("turns", ())
    return [turn["device_seconds"] for turn in turns if turn["device_seconds"] is not None]


def _steps(found: Found, case: Any, batch: CardBatch) -> list[float]:
    return step_seconds(_cell(found, "steps", step_name(case, batch)))


def _graphs(found: Found, case: Any, batch: CardBatch) -> list[float]:
    return graph_seconds(_cell(found, "steps", step_name(case, batch)))


def _cell(found: Found, phase: str, cell: str) -> Mapping[str, Any]:
    return found.get(phase, {}).get(cell, {})


def _ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, others, strict=False)]
