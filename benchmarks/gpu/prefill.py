"""Prompts as fast as they are computed: no block of them is in the prefix cache."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from benchmarks.gpu.phases import CardCell
from benchmarks.gpu.site import Site
from benchmarks.gpu.work import CardBatch, CaseName

_CASES: tuple[CaseName, ...] = ("base", "mixtures")
_SEEDS = itertools.count(1)  # no prompt is computed twice in one process


def prefill_name(case: CaseName, batch: CardBatch) -> str:
    """The name of a cell."""
    return f"{case}, {batch.title}"


def prefill_cells(site: Site) -> list[CardCell]:
    """A cell a batch and case."""
    return [
        CardCell(prefill_name(case, batch), partial(_measure, site, case, batch))
        for batch in (CardBatch(*size) for size in site.settings.sizes.prefills)
        for case in _CASES
    ]


def _measure(site: Site, case: CaseName, batch: CardBatch) -> dict[str, Any]:
    """Seconds of each round, after one in which kernels are compiled."""
    engine, work = site.engine, site.work(case)
    seconds = []
    for _ in range(1 + site.settings.rounds):
        turn = work.turn(case, batch, 1, seed=next(_SEEDS))
        seconds.append(engine.prefill(turn.requests))
    return {"case": case, "tokens": batch.tokens, "seconds": seconds[1:]}
