"""Decode steps of every batch under every case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

from benchmarks.gpu.bandwidth import memory_bandwidth
from benchmarks.gpu.engine import CardEngine
from benchmarks.gpu.phases import CardCell, LeftOutError
from benchmarks.gpu.settings import CardSizes
from benchmarks.gpu.site import Site
from benchmarks.gpu.work import CASES, CardBatch, CaseName, Work


def step_name(case: CaseName, batch: CardBatch) -> str:
    """The name of a cell."""
    return f"{case}, {batch.title}"


def batches(sizes: CardSizes) -> Iterator[tuple[CardBatch, tuple[CaseName, ...]]]:
    """Batches with their cases, the goals' first; equal batches together: they share prompts."""
    requests, context = sizes.goal
    yield CardBatch(requests, context), CASES
    yield CardBatch(requests, context, first=sizes.long_context), ("base", "mixtures")
    for context, requests in product(sizes.contexts, sizes.requests):
        if (requests, context) != sizes.goal:
            yield CardBatch(requests, context), tuple(case for case in CASES if case != "hidden")


def step_cells(site: Site) -> list[CardCell]:
    """The memory's speed, and a cell a batch and case."""
    return [
        CardCell("bandwidth", lambda: {"bytes_a_second": memory_bandwidth(site.device)}),
        *_of_batches(site),
    ]


def _of_batches(site: Site) -> list[CardCell]:
    return [
        CardCell(step_name(case, batch), partial(_measure, site, case, batch))
        for batch, cases in batches(site.settings.sizes)
        for case in cases
    ]


def _measure(site: Site, case: CaseName, batch: CardBatch) -> dict[str, Any]:
    """Turns of steps, after one in which kernels are compiled and graphs captured."""
    settings = site.settings
    needed, most = batch.kv_tokens(settings.steps), settings.sizes.kv_tokens
    if needed > most:
        raise LeftOutError(f"{needed} tokens of KV are needed, and the cache holds {most}")
    engine, work = site.engine, site.work(case)
    filled = _fill(engine, work, case, batch, settings.steps)
    first = work.turn(case, batch, 1)
    engine.decode(first.requests, first.skip, 1)
    turns = []
    for _ in range(settings.rounds):
        turn = work.turn(case, batch, settings.steps)
        turns.append(asdict(engine.decode(turn.requests, turn.skip, settings.steps)))
    return {
        "case": case,
        "requests": batch.requests,
        "context": batch.context,
        "first": batch.first,
        "turns": turns,
        "fill_seconds": filled,
        "weight_bytes": engine.weight_bytes,
    }


def _fill(
    engine: CardEngine, work: Work, case: CaseName, batch: CardBatch, steps: int
) -> float | None:
    """Seconds in which the prompts were computed; None where the cache has them from before."""
    under: CaseName = "base" if work.shares(case, batch) else case
    if (under, batch) in engine.filled:
        return None
    seconds = engine.prefill(work.turn(under, batch, steps).requests)
    engine.filled.add((under, batch))
    return seconds
