"""The serving benchmark: closed-loop load over HTTP on a real server, case by case."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.cases import NUM_ADAPTERS, Case, request_body
from benchmarks.load import Round, closed_loop
from benchmarks.machine import describe_machine, describe_software
from benchmarks.process import publish, server
from benchmarks.prompts import make_prompts
from benchmarks.report import summarize
from benchmarks.subject import RANK, TARGETS, Subject, write_adapters

MIN_REQUESTS = 4  # in a round, however few the clients
TEXTS_PER_ADAPTER = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run of the benchmark measures."""

    concurrencies: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3
    requests_per_client: int = 2
    max_new_tokens: int = 64
    dtype: str = "auto"
    kernels: str = "auto"
    threads: int | None = None  # of the engine; None: all cores
    seed: int = 0

    def requests(self, concurrency: int) -> int:
        return max(MIN_REQUESTS, self.requests_per_client * concurrency)

    def total_requests(self, cases: Sequence[Case]) -> int:
        per_round = sum(self.requests(concurrency) for concurrency in self.concurrencies)
        return len(cases) * self.rounds * per_round


@dataclass(frozen=True, slots=True)
class Cell:
    """One case at one concurrency."""

    case: Case
    concurrency: int


def run_benchmark(subject: Subject, cases: Sequence[Case], plan: Plan) -> dict[str, Any]:
    """Measure all cases against one server and return the result as written to JSON.

    Raises BenchmarkError when the server does not start or refuses what is asked of it.
    """
    console = Console(stderr=True)
    names = [f"random-{index}" for index in range(NUM_ADAPTERS)]
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folder = Path(temporary)
        folders = write_adapters(subject, folder / "adapters", names)
        options = _server_options(subject, cases, plan, folder / "store")
        console.print(f"starting a server for {subject.name}")
        with server(options, folder / "server.log") as url:
            texts = make_prompts(TEXTS_PER_ADAPTER, f"{plan.seed} texts", subject.count_tokens)
            publish(url, folders, texts)
            rounds = asyncio.run(_measure(url, subject, cases, plan, names, console))
    return {
        "model": subject.name,
        "machine": describe_machine(),
        "software": describe_software(),
        "plan": asdict(plan),
        "adapters": {"count": NUM_ADAPTERS, "rank": RANK, "targets": list(TARGETS)},
        "cells": [
            {
                "case": cell.case.name,
                "title": cell.case.title,
                "concurrency": cell.concurrency,
                **summarize(measured),
            }
            for cell, measured in rounds.items()
        ],
    }


def _server_options(subject: Subject, cases: Sequence[Case], plan: Plan, store: Path) -> list[str]:
    encoder = "default" if any(case.needs_encoder for case in cases) else "none"
    options = ["--model", subject.model, "--store", str(store), "--encoder", encoder]
    options += ["--dtype", plan.dtype, "--kernels", plan.kernels, "--log-level", "warning"]
    if plan.threads is not None:
        options += ["--engine-threads", str(plan.threads)]
    return options


async def _measure(
    url: str,
    subject: Subject,
    cases: Sequence[Case],
    plan: Plan,
    names: Sequence[str],
    console: Console,
) -> dict[Cell, list[Round]]:
    """All cells in turn, then again: a slow minute of the machine then falls on all alike."""
    cells = [Cell(case, level) for case in cases for level in plan.concurrencies]
    measured: dict[Cell, list[Round]] = {cell: [] for cell in cells}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    limits = httpx.Limits(max_connections=max(plan.concurrencies))
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("warming up", total=plan.total_requests(cases))
            for case in cases:  # loads the adapters, fills caches of code; not counted
                await closed_loop(client, _bodies(case, subject, plan, names, 2, "warm-up"), 2)
            for number in range(plan.rounds):
                for cell in cells:
                    label = f"round {number + 1}: {cell.case.title}, {cell.concurrency} clients"
                    progress.update(task, description=label)
                    count = plan.requests(cell.concurrency)
                    bodies = _bodies(cell.case, subject, plan, names, count, f"round {number}")
                    one = await closed_loop(
                        client, bodies, cell.concurrency, lambda: progress.advance(task)
                    )
                    measured[cell].append(one)
    return measured


def _bodies(
    case: Case, subject: Subject, plan: Plan, names: Sequence[str], count: int, part: str
) -> list[dict[str, Any]]:
    """Requests whose prompts no other part of the run uses: none is in the prefix cache."""
    seed = f"{plan.seed} {case.name} {part} {count}"
    prompts = make_prompts(count, seed, subject.count_tokens)
    return [
        request_body(prompt, plan.max_new_tokens, case.mixture_of(index, names))
        for index, prompt in enumerate(prompts)
    ]
