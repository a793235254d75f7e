"""What is asked of the server, and what is kept of its answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.scoring.tasks import options_of
from adaptermix.training.data import Row

_ANY = " A"  # of a prompt without options only what comes before its answer is wanted


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its options; `right` is None where only the model's doubt is wanted."""

    prompt: str
    options: tuple[str, ...]
    right: int | None

    @classmethod
    def choice(cls, row: Row) -> Question:
        """A multiple-choice row."""
        options = tuple(f" {letter}" for letter in options_of(row.prompt))
        if row.completion not in options:
            raise BenchmarkError(f"{row.completion!r} is no option of {row.prompt!r}")
        return cls(row.prompt, options, options.index(row.completion))

    @classmethod
    def unfamiliar(cls, row: Row) -> Question:
        """Another task's row."""
        return cls(row.prompt, (_ANY,), None)


@dataclass(frozen=True, slots=True)
class AnswerUncertainty:
    """options [options]: their probabilities, which sum to 1.

    token_entropy and information in nats, of the first token of the answer over the vocabulary;
    information is nan where one sequence answered.
    """

    options: NDArray[np.float64]
    token_entropy: float
    information: float

    @property
    def option_entropy(self) -> float:
        return float(-sum(p * math.log(p) for p in self.options if p > 0))


def doubt_of(reply: Mapping[str, Any]) -> AnswerUncertainty:
    """From a reply of /score."""
    logprobs = np.array([score["logprob"] for score in reply["scores"]])
    shares = np.exp(logprobs - logprobs.max())
    said = reply["scores"][0]["tokens"][0]["uncertainty"]
    information = said.get("mutual_information", math.nan)
    return AnswerUncertainty(shares / shares.sum(), said["entropy"], information)


async def ask_all(
    http: aiohttp.ClientSession,
    questions: Sequence[Question],
    mixtures: Mapping[str, dict[str, Any]],
    concurrency: int,
    console: Console,
) -> dict[str, list[AnswerUncertainty]]:
    """Every question under every mixture, by the mixture's name. Raises BenchmarkError."""
    found: dict[str, dict[int, AnswerUncertainty]] = {name: {} for name in mixtures}
    waiting = iter([(n, q, name) for n, q in enumerate(questions) for name in mixtures])
    with Progress(console=console) as progress:
        bar = progress.add_task("asking", total=len(questions) * len(mixtures))

        async def client() -> None:
            for number, question, name in waiting:
                found[name][number] = await _ask(http, question, mixtures[name])
                progress.advance(bar)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(client())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return {name: [one[n] for n in range(len(questions))] for name, one in found.items()}


async def _ask(
    http: aiohttp.ClientSession, question: Question, mixture: dict[str, Any]
) -> AnswerUncertainty:
    body = {
        "inputs": question.prompt,
        "completions": list(question.options),
        "mixture": mixture,
        "uncertainty": True,
    }
    async with http.post("/score", json=body) as response:
        if response.status != HTTPStatus.OK:
            text = (await response.text())[:500]
            raise BenchmarkError(f"the server answered {response.status} to {mixture}: {text}")
        return doubt_of(await response.json())
