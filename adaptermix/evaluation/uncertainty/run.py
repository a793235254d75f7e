"""The study: a server of its own, every question asked of it both ways, and the result."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin
from adaptermix.bench.rounds import attempt
from adaptermix.bench.server import OwnServer, own_server, publish
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import Subject, resolve
from adaptermix.evaluation.asking import Ask, Body, ask_all
from adaptermix.evaluation.routing.plan import Rows
from adaptermix.evaluation.routing.suite import SuiteRouting
from adaptermix.evaluation.scoring.tasks import Task, task_named
from adaptermix.evaluation.settings import UncertaintySettings
from adaptermix.evaluation.speed import measure_speed, relative
from adaptermix.evaluation.uncertainty.measures import (
    AVERAGE,
    ENSEMBLE,
    AnswerUncertainty,
    Question,
    measures_of,
    uncertainty_of,
)

_FAMILIAR = "science"  # ARC, both sets
_OPTIONS = 5  # of a question, at most: they are scored together
_RUNNING = 64


def run_uncertainty(settings: UncertaintySettings, model: ModelSettings) -> dict[str, Any]:
    """Measure every adapter; the result as written to JSON, `missing` being what failed.

    Raises BenchmarkError for what cannot be measured, and where all adapters fail.
    """
    console, missing = Console(stderr=True), dict[str, str]()
    subject = resolve(model.model)
    rows = Rows(settings.data, "test")
    questions = questions_of(settings, rows)
    with _server(subject, settings, model) as own:
        adapters = []
        for folder in settings.adapter:
            with attempt(missing, folder.name, console):
                measuring = _measure(own.url, folder.name, questions, settings, subject, console)
                adapters.append(uvloop.run(measuring))
    if not adapters:
        raise BenchmarkError(next(iter(missing.values()), "there is no adapter to measure"))
    return {
        **origin(
            "uncertainty",
            subject.name,
            own.serving,
            asdict(settings)
            | {"data": None, "adapter": [folder.name for folder in settings.adapter]},
        ),
        "files": rows.files,
        "adapters": adapters,
        "missing": missing,
    }


def questions_of(settings: UncertaintySettings, rows: Rows) -> list[Question]:
    """ARC rows, and behind them as many of the unfamiliar sets, of each alike."""
    familiar = rows.test(task_named(_FAMILIAR), settings.rows, settings.seed)
    each = -(-len(familiar) // max(1, len(settings.unfamiliar)))
    others = [
        row
        for name in settings.unfamiliar
        for row in rows.test(Task(name, (name,), {}), each, settings.seed)
    ]
    return [*map(Question.choice, familiar), *map(Question.unfamiliar, others)]


@contextlib.contextmanager
def _server(
    subject: Subject, settings: UncertaintySettings, model: ModelSettings
) -> Iterator[OwnServer]:
    """A server that has the adapters."""
    sequences = _OPTIONS * settings.concurrency * settings.members
    options = {
        "encoder": "none",
        "max-running": max(_RUNNING, 8 * settings.members),
        "max-waiting": sequences + _RUNNING,
    }
    with (
        tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary,
        own_server(subject.model, model, Path(temporary), options) as own,
    ):
        publish(own.url, settings.adapter)
        yield own


async def _measure(
    url: str,
    name: str,
    questions: Sequence[Question],
    settings: UncertaintySettings,
    subject: Subject,
    console: Console,
) -> dict[str, Any]:
    copies = {"mode": "ensemble", "members": settings.members, "seed": settings.seed}
    mixtures: dict[str, dict[str, Any]] = {
        AVERAGE: {"adapters": [{"name": name}]},
        ENSEMBLE: {"adapters": [{"name": name, "copies": copies}]},
    }
    async with http_client(url) as http:
        answers = await _ask_all(http, questions, mixtures, settings.concurrency, console)
        speed: dict[str, Any] = {}
        if settings.speed_rounds:
            routings = [SuiteRouting(name=way, mixture=body) for way, body in mixtures.items()]
            rates = await measure_speed(
                http, routings, settings.speed_rounds, subject.count_tokens, console
            )
            speed = relative(rates, AVERAGE)
    return {"adapter": name, **measures_of(questions, answers, settings.seed), "speed": speed}


async def _ask_all(
    http: aiohttp.ClientSession,
    questions: Sequence[Question],
    mixtures: Mapping[str, Body],
    concurrency: int,
    console: Console,
) -> dict[str, list[AnswerUncertainty]]:
    """Every question under every mixture, by the mixture's name. Raises BenchmarkError."""
    asks = {
        (name, number): Ask(name, "/score", question.body | {"mixture": mixture})
        for number, question in enumerate(questions)
        for name, mixture in mixtures.items()
    }
    answers: dict[tuple[str, int], AnswerUncertainty] = {}

    def keep(key: tuple[str, int], reply: Mapping[str, Any]) -> None:
        answers[key] = uncertainty_of(reply)

    await ask_all(http, asks, keep, concurrency, console)
    return {name: [answers[name, n] for n in range(len(questions))] for name in mixtures}
