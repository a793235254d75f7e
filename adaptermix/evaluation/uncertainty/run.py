"""The study: a server of its own, every question asked of it both ways, and the result."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import default_kernels, describe_machine, describe_software
from adaptermix.bench.process import info, publish, started
from adaptermix.bench.serve import server_options
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import Subject, resolve
from adaptermix.bench.turns import attempt
from adaptermix.evaluation.routing.rows import Rows
from adaptermix.evaluation.routing.speed import measure_speed, relative
from adaptermix.evaluation.routing.suite import SuiteRouting
from adaptermix.evaluation.scoring.tasks import Task, task_named
from adaptermix.evaluation.uncertainty.asking import Question, ask_all
from adaptermix.evaluation.uncertainty.results import AVERAGE, ENSEMBLE, measures_of
from adaptermix.evaluation.uncertainty.settings import UncertaintySettings

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
    kernels = model.kernels or default_kernels()
    with _site(subject, settings, model, kernels) as url:
        known = info(url)
        adapters = []
        for folder in settings.adapter:
            with attempt(missing, folder.name, console):
                measuring = _measure(url, folder.name, questions, settings, subject, console)
                adapters.append(uvloop.run(measuring))
    if not adapters:
        raise BenchmarkError(next(iter(missing.values()), "there is no adapter to measure"))
    machine = describe_machine()
    threads = model.threads or machine["cores"]
    return {
        "kind": "uncertainty",
        "model": subject.name,
        "machine": machine,
        "software": describe_software(),
        "serving": {"dtype": known["dtype"], "kernels": kernels, "threads": threads},
        "settings": asdict(settings)
        | {"data": None, "adapter": [folder.name for folder in settings.adapter]},
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
def _site(
    subject: Subject, settings: UncertaintySettings, model: ModelSettings, kernels: str
) -> Iterator[str]:
    """The URL of a server that has the adapters."""
    sequences = _OPTIONS * settings.concurrency * settings.members
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folder = Path(temporary)
        options = server_options(subject, model.dtype, kernels, model.threads)
        options += ["--store", str(folder / "store"), "--encoder", "none"]
        options += ["--max-running", str(max(_RUNNING, 8 * settings.members))]
        options += ["--max-waiting", str(sequences + _RUNNING)]
        with started(options, folder / "server.log") as running:
            publish(running.url, settings.adapter)
            yield running.url


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
        doubts = await ask_all(http, questions, mixtures, settings.concurrency, console)
        speed: dict[str, Any] = {}
        if settings.speed_rounds:
            routings = [SuiteRouting(name=way, mixture=body) for way, body in mixtures.items()]
            rates = await measure_speed(
                http, routings, settings.speed_rounds, subject.count_tokens, console
            )
            speed = relative(rates, AVERAGE)
    return {"adapter": name, **measures_of(questions, doubts, settings.seed), "speed": speed}
