"""Tokens a second of each routing, all in turn, round after round, as `bench serve` measures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console

from adaptermix.bench.clients import GenerateClient
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, Round
from adaptermix.bench.rounds import Cell, Driven, measure
from adaptermix.bench.workload import CaseMixture, Job, TokenCount, make_prompts
from adaptermix.evaluation.routing.suite import SuiteRouting

CLIENTS = 8
REQUESTS = 2 * CLIENTS  # of one round
PROMPT_TOKENS = 64
NEW_TOKENS = 32
_SYSTEM = "adaptermix"


@dataclass(frozen=True, slots=True)
class Written(CaseMixture):
    """A mixture as it is written in a suite."""

    written: dict[str, Any] | None = None

    def body(self) -> dict[str, Any] | None:
        """As `mixture` of a request to AdapterMix."""
        return self.written


async def measure_speed(
    http: aiohttp.ClientSession,
    routings: Sequence[SuiteRouting],
    rounds: int,
    count_tokens: TokenCount,
    console: Console,
) -> dict[str, list[float]]:
    """{routing: output tokens a second of each round}; those that change with the task have none.

    Prompts share no prefix, answers have an exact length past any end-of-text token.
    """
    mixtures = {r.name: Written(written=r.mixture) for r in routings if r.by_task is None}

    def jobs_of(cell: Cell, part: str) -> list[Job]:
        seed = f"{cell.case} {part}"
        texts = make_prompts([PROMPT_TOKENS] * cell.requests, seed, count_tokens)
        return [Job(text, NEW_TOKENS, mixtures[cell.case]) for text in texts]

    cells = [Cell(_SYSTEM, name, Load(clients=CLIENTS), REQUESTS) for name in mixtures]
    system = Driven(GenerateClient(http).send)
    measured = await measure({_SYSTEM: system}, cells, rounds, jobs_of, console)
    if measured.missing:  # a ratio to what is missing says nothing
        raise BenchmarkError("; ".join(f"{one}: {why}" for one, why in measured.missing.items()))
    return {cell.case: _rates(done) for cell, done in measured.rounds.items()}


def _rates(rounds: Sequence[Round]) -> list[float]:
    return [turn.tokens_per_second for turn in rounds]


def relative(rates: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Each routing's median over that of `to`, with the range of the ratios round by round."""
    own = rates[to]
    ratios_by_name = {}
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, own, strict=True)]
        ratios_by_name[name] = {
            "tokens_per_second": statistics.median(values),
            "relative": statistics.median(values) / statistics.median(own),
            "low": min(ratios),
            "high": max(ratios),
        }
    return ratios_by_name
