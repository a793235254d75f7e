"""`adaptermix bench engine`: the cases without HTTP, or curves of the time of a decode step."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adaptermix.bench.load import Load, OnDone, Round
from adaptermix.bench.machine import (
    default_kernels,
    origin,
    read_bandwidth,
)
from adaptermix.bench.offline import Offline, Sizes, Step, offline, split
from adaptermix.bench.report import cell_of, missing_lines, provenance, row, table_head
from adaptermix.bench.report import markdown as cells_page
from adaptermix.bench.rounds import Cell, Turns, measure
from adaptermix.bench.settings import AdapterSettings, EngineSettings, ModelSettings, WorkSettings
from adaptermix.bench.subject import ALL_TARGETS, TARGETS, Subject, resolve, write_adapters
from adaptermix.bench.workload import CaseMixture, Job, Population, make_prompts, parse_lengths

CONTEXT = 128
RANK = 8
NUM_ADAPTERS = 8  # where their number is not what is varied


@dataclass(frozen=True, slots=True)
class Point:
    """A batch of equal requests: one point of a curve."""

    curve: str
    axis: str  # its title
    x: int
    case: str
    requests: int
    context: int = CONTEXT  # tokens of each prompt
    adapters: int = 0  # that take turns
    size: int = 1  # of them in each mixture
    rank: int = RANK

    def names(self, request: int) -> tuple[str, ...]:
        """Adapters of one request."""
        return tuple(
            name_of(self.rank, (request + i) % self.adapters)
            for i in range(self.size if self.adapters else 0)
        )

    @property
    def title(self) -> str:
        return f"{self.curve} {self.x}, {self.case}"

    @property
    def active(self) -> set[str]:
        return {name for request in range(self.requests) for name in self.names(request)}


def name_of(rank: int, number: int) -> str:
    return f"rank{rank}-{number}"


def _requests(x: int) -> list[Point]:
    at = ("requests", "requests", x)
    return [Point(*at, "base", x), Point(*at, "eight adapters", x, adapters=NUM_ADAPTERS)]


def _context(x: int) -> list[Point]:
    at = ("context", "context in tokens, 8 requests", x)
    eight = Point(*at, "eight adapters", 8, x, adapters=NUM_ADAPTERS)
    return [Point(*at, "base", 8, x), eight]


def _adapters(x: int) -> list[Point]:
    return [Point("adapters", "active adapters, 64 requests", x, "single", 64, adapters=x)]


def _mixture(x: int) -> list[Point]:
    at = ("mixture", "adapters a mixture, 32 requests", x)
    return [Point(*at, "mixtures", 32, adapters=NUM_ADAPTERS, size=x)]


def _rank(x: int) -> list[Point]:
    at = ("rank", "rank of eight adapters, 32 requests", x)
    return [Point(*at, "eight adapters", 32, adapters=NUM_ADAPTERS, rank=x)]


_AXES = {
    "requests": (_requests, (1, 2, 4, 8, 16, 32, 64, 128)),
    "context": (_context, (128, 256, 512, 1024, 2048, 4096)),
    "adapters": (_adapters, (1, 2, 4, 8, 16, 32, 64)),
    "mixture": (_mixture, (1, 2, 4, 8)),
    "rank": (_rank, (4, 8, 16, 32, 64)),
}


def curves(settings: EngineSettings) -> list[Point]:
    """The points of the curves that are asked for."""
    low, high = settings.smallest or 0, settings.largest or 1 << 62
    return [
        point
        for name in dict.fromkeys(settings.curve)
        for x in _AXES[name][1]
        if low <= x <= high
        for point in _AXES[name][0](x)
    ]


def population_of(points: Sequence[Point]) -> dict[str, int]:
    """Name -> rank of every adapter that some point needs."""
    return {name: point.rank for point in points for name in sorted(point.active)}


def needs(points: Sequence[Point], steps: int) -> Sizes:
    """The most requests and tokens of any point; every prompt stays in the prefix cache."""
    requests = max(point.requests for point in points)
    tokens = max(point.requests * (point.context + steps + point.requests) for point in points)
    prompts = {(point.context, request) for point in points for request in range(point.requests)}
    cached = sum(context for context, _ in prompts)
    return Sizes(requests, tokens + min(cached, tokens))


def measure_curves(
    system: Offline,
    subject: Subject,
    points: Sequence[Point],
    settings: EngineSettings,
    rounds: int,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All points in turn, round after round, and which are missing, and why.

    The first round is not counted. Raises BenchmarkError where all points fail.
    """
    speed = read_bandwidth(rounds=5)
    jobs = {point: _jobs(point, subject) for point in points}
    turns = Turns[Point, list[Step]](points, lambda point: point.title, console)
    for number, point in turns.rounds(rounds + 1, "curves"):
        with turns.turn(point) as steps:
            measured = system.decode_steps(jobs[point], settings.steps)
            if number > 0:
                steps.append(measured)
    turns.require_some()
    points_written = [
        _written(system, point, steps, speed) for point, steps in turns.values.items()
    ]
    return points_written, turns.missing


def _jobs(point: Point, subject: Subject) -> list[Job]:
    jobs = []
    for request in range(point.requests):
        (text,) = make_prompts([point.context], f"{request}", subject.count_tokens)
        names = point.names(request)
        jobs.append(Job(text, 0, CaseMixture(names, (1 / max(1, len(names)),) * len(names))))
    return jobs


def _written(
    system: Offline, point: Point, rounds: Sequence[Sequence[Step]], speed: float
) -> dict[str, Any]:
    medians = [statistics.median(step.seconds for step in turn) for turn in rounds]
    adapters = system.adapter_bytes(sorted(point.active))
    context = point.requests * point.context * system.kv_bytes_per_token
    total = system.weight_bytes + adapters + context
    return {
        "curve": point.curve,
        "axis": point.axis,
        "x": point.x,
        "case": point.case,
        "requests": point.requests,
        "context": point.context,
        "active_adapters": len(point.active),
        "mixture_size": point.size if point.adapters else 0,
        "rank": point.rank if point.adapters else 0,
        "step_ms": 1e3 * statistics.median(medians),
        "step_ms_range": [1e3 * min(medians), 1e3 * max(medians)],
        "model_ms": 1e3 * statistics.median(step.model for turn in rounds for step in turn),
        "bytes": {"weights": system.weight_bytes, "adapters": adapters, "context": context},
        "bytes_per_second": speed,
        "floor_ms": 1e3 * total / speed,
    }


NAME = "engine"


def run_engine(
    engine: EngineSettings, work: WorkSettings, adapters: AdapterSettings, model: ModelSettings
) -> dict[str, Any]:
    """Measure cases, or curves where some are named; the result as written to JSON."""
    subject = resolve(model.model)
    kernels = model.kernels or default_kernels()
    chosen = curves(engine)
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folder = Path(temporary)
        targets = ALL_TARGETS if adapters.targets == "all" else TARGETS
        ranks = population_of(chosen) if chosen else _ranks(adapters)
        folders = write_adapters(
            subject, folder / "adapters", tuple(ranks), tuple(ranks.values()) or (1,), targets
        )
        sizes = needs(chosen, engine.steps) if chosen else _sizes(work)
        with offline(
            subject, folders, sizes, folder / "store", dtype=model.dtype, kernels=kernels
        ) as system:
            console = Console(stderr=True)
            points, cells, missing = list[Any](), list[Any](), dict[str, str]()
            if chosen:
                points, missing = measure_curves(
                    system, subject, chosen, engine, work.rounds, console
                )
            else:
                cells, missing = _cases(system, subject, work, adapters, console)
            dtype = system.engine.info.dtype
    return {
        **origin(
            "engine",
            subject.name,
            {"dtype": dtype, "kernels": kernels, "threads": torch.get_num_threads()},
            {**asdict(work), **asdict(adapters), **asdict(engine)},
        ),
        "cells": cells,
        "points": points,
        "missing": missing,
    }


class _Recording:
    """Keeps the steps of every cell."""

    def __init__(self, system: Offline) -> None:
        self._system = system
        self.steps: dict[tuple[str, Load], list[Step]] = {}

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        done = await self._system.round(case, load, jobs, on_done)
        self.steps.setdefault((case, load), []).extend(self._system.steps)
        return done


def _cases(
    system: Offline,
    subject: Subject,
    work: WorkSettings,
    adapters: AdapterSettings,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The cells as written to JSON, and which are missing, and why."""
    names = tuple(_ranks(adapters))
    population = Population(
        names, adapters.mixtures, adapters.mixture_size, adapters.zipf, adapters.every
    )
    traffic = work.traffic(population, subject.count_tokens)
    cells = [
        Cell(NAME, case, Load(clients=clients), work.requests(clients))
        for case in work.cases
        for clients in work.concurrency
    ]

    def jobs_of(cell: Cell, part: str) -> list[Job]:
        return traffic.jobs(cell.case, cell.requests, f"{part} {cell.load.label}")

    recording = _Recording(system)
    measured = asyncio.run(measure({NAME: recording}, cells, work.rounds, jobs_of, console))
    written = [
        {
            **cell_of(population.title(cell.case), cell, rounds, work.slo_ttft, work.slo_itl),
            "decode_step": split(recording.steps[cell.case, cell.load]),
        }
        for cell, rounds in measured.rounds.items()
    ]
    return written, dict(measured.missing)


def _ranks(adapters: AdapterSettings) -> dict[str, int]:
    """Name -> rank."""
    ranks = adapters.rank
    return {f"random-{i}": ranks[i % len(ranks)] for i in range(adapters.adapters)}


def _sizes(work: WorkSettings) -> Sizes:
    most = max(work.concurrency)
    longest = parse_lengths(work.prompt).longest + parse_lengths(work.output).longest
    return Sizes(most, most * (longest + 1))


def markdown(result: Mapping[str, Any]) -> str:
    """Cells with the split of their steps, or the points of the curves."""
    if result["cells"]:
        page = cells_page(result)
        lines = ["", "## Where a decode step goes, ms", ""]
        heads = ("case", "clients", "step", "in the model", "around it")
        lines += table_head(heads, (0, 1))
        for cell in result["cells"]:
            times = [f"{cell['decode_step'][name]:.2f}" for name in _SPLIT]
            lines.append(row([cell["title"], cell["load"], *times]))
        return page + "\n".join(lines) + "\n"
    lines = ["# `adaptermix bench engine`: curves", "", provenance(result), ""]
    lines += points_table(result["points"])
    return "\n".join([*lines, "", *missing_lines(result.get("missing", {})), ""])


_SPLIT = ("step_ms", "model_ms", "around_ms")


def points_table(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every point of every curve, as rows of a Markdown table."""
    heads = ("against", "", "case", "step ms", "range", "in the model", "floor", "step / floor")
    lines = table_head(heads, (0, 2))
    for point in points:
        low, high = point["step_ms_range"]
        lines.append(
            row(
                [
                    point["axis"],
                    str(point["x"]),
                    point["case"],
                    f"{point['step_ms']:.1f}",
                    f"{low:.1f}-{high:.1f}",
                    f"{point['model_ms']:.1f}",
                    f"{point['floor_ms']:.1f}",
                    f"{point['step_ms'] / point['floor_ms']:.2f}",
                ]
            )
        )
    return lines
