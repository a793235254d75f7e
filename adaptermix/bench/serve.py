"""`adaptermix bench serve`: load over HTTP on a server of its own, or on any that runs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console

from adaptermix.bench.clients import GenerateClient, LoadClient, OpenAIClient, http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin
from adaptermix.bench.report import cell_of
from adaptermix.bench.rounds import Cell, Driven, Measured, measure
from adaptermix.bench.server import info, own_server, publish
from adaptermix.bench.settings import (
    AdapterSettings,
    ModelSettings,
    ServeSettings,
    WorkSettings,
    loads,
)
from adaptermix.bench.subject import (
    ALL_TARGETS,
    TARGETS,
    Subject,
    device_room,
    resolve,
    write_adapters,
)
from adaptermix.bench.workload import PEER_CASES, Job, Population, Traffic, make_prompts

TEXTS_PER_ADAPTER = 8
NAME = "adaptermix"


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A server that is ready for load."""

    url: str
    model: str  # the base model's name there
    adapters: tuple[str, ...]  # their names
    serving: dict[str, Any]  # how it computes, as a result tells it


def run_serve(
    serve: ServeSettings, work: WorkSettings, adapters: AdapterSettings, model: ModelSettings
) -> dict[str, Any]:
    """Measure all cells and return the result as written to JSON; `missing` are those that failed.

    Raises BenchmarkError when the server does not start or refuses what is asked of it.
    """
    console = Console(stderr=True)
    subject = resolve(model.model)
    _check_cases(serve, work)
    with _target(subject, serve, work, adapters, model) as target:
        population = Population(
            target.adapters,
            adapters.mixtures,
            min(adapters.mixture_size, max(1, len(target.adapters))),
            adapters.zipf,
            adapters.every,
        )
        traffic = work.traffic(population, subject.count_tokens)
        measured = uvloop.run(_measure(target, traffic, serve, work, console))
    return {
        **origin(
            "serve",
            subject.name,
            target.serving,
            {**asdict(work), **asdict(adapters), "target": serve.target, "out": None},
        ),
        "cells": [
            cell_of(population.title(cell.case), cell, rounds, work.slo_ttft, work.slo_itl)
            for cell, rounds in measured.rounds.items()
        ],
        "missing": dict(measured.missing),
    }


def _check_cases(serve: ServeSettings, work: WorkSettings) -> None:
    others = [case for case in work.cases if case not in PEER_CASES]
    if serve.target == "openai" and others:
        raise BenchmarkError(
            f"case {', '.join(others)} cannot be asked of OpenAI's route: name --case base, one or "
            "many, or use --target generate"
        )
    if serve.url is not None and not serve.adapter and set(work.cases) != {"base"}:
        raise BenchmarkError(
            "name the adapters of the server at --url with --adapter, or use --case base"
        )


@contextlib.contextmanager
def _target(
    subject: Subject,
    serve: ServeSettings,
    work: WorkSettings,
    adapters: AdapterSettings,
    model: ModelSettings,
) -> Iterator[LoadTarget]:
    """The server at `serve.url`, or one of its own with random adapters and sample texts."""
    if serve.url is not None:
        served = {} if serve.target == "openai" else info(serve.url)
        name = serve.served or served.get("model_id", "")
        serving = {"url": serve.url, "dtype": served.get("dtype"), "kernels": None, "threads": None}
        yield LoadTarget(serve.url, name, serve.adapter, serving)
        return
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folder = Path(temporary)
        names = tuple(f"random-{index}" for index in range(adapters.adapters))
        targets = ALL_TARGETS if adapters.targets == "all" else TARGETS
        folders = write_adapters(subject, folder / "adapters", names, adapters.rank, targets)
        options = {
            "adapter-memory": device_room(folders),
            "max-running": max(8, *work.concurrency),
            "max-waiting": max(requests for _, requests in loads(work, serve)),
            "encoder": None if "similarity" in work.cases else "none",
        }
        with own_server(subject.model, model, folder, options) as own:
            texts = make_prompts([48] * TEXTS_PER_ADAPTER, "texts", subject.count_tokens)
            publish(own.url, folders, texts)
            serving = {**own.serving, "start_seconds": own.running.start_seconds}
            yield LoadTarget(own.url, own.info["model_id"], names, serving)


async def _measure(
    target: LoadTarget, traffic: Traffic, serve: ServeSettings, work: WorkSettings, console: Console
) -> Measured:
    cells = [
        Cell(NAME, case, load, requests)
        for case in work.cases
        for load, requests in loads(work, serve)
    ]

    def jobs_of(cell: Cell, part: str) -> list[Job]:
        return traffic.jobs(cell.case, cell.requests, f"{part} {cell.load.label}")

    async with http_client(target.url) as http:
        client: LoadClient = GenerateClient(http)
        if serve.target == "openai":
            client = OpenAIClient(http, target.model)
        system = Driven(client.send, merging(http))
        return await measure({NAME: system}, cells, work.rounds, jobs_of, console)


def merging(http: aiohttp.ClientSession) -> Any:
    """For `Driven`: a round of the case `merged` runs while its mixture is in the base."""

    @contextlib.asynccontextmanager
    async def enter(case: str, jobs: Sequence[Job]) -> AsyncIterator[None]:
        if case != "merged":
            yield
            return
        await _switch(http.put("/admin/merged", json=jobs[0].mixture.body()))
        try:
            yield
        finally:
            await _switch(http.delete("/admin/merged"))

    return enter


async def _switch(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> None:
    async with request as answer:
        if not answer.ok:
            raise BenchmarkError(f"/admin/merged answered {answer.status}: {await answer.text()}")
