"""`adaptermix bench engine`: the cases without HTTP, or curves of the time of a decode step."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adaptermix.bench.cases import Job, Population
from adaptermix.bench.curves import curves, measure_curves, needs, population_of
from adaptermix.bench.lengths import parse_lengths
from adaptermix.bench.load import Load, OnDone, Round
from adaptermix.bench.machine import default_kernels, describe_machine, describe_software
from adaptermix.bench.matrix import Cell, measure
from adaptermix.bench.offline import Offline, Sizes, Step, offline, split
from adaptermix.bench.report import cell_of, missing_lines, provenance, row
from adaptermix.bench.report import markdown as cells_page
from adaptermix.bench.settings import AdapterSettings, EngineSettings, ModelSettings, WorkSettings
from adaptermix.bench.subject import ALL_TARGETS, TARGETS, Subject, resolve, write_adapters

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
        sizes = Sizes(sizes.requests, sizes.tokens, sum(ranks.values()))
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
        "kind": "engine",
        "model": subject.name,
        "machine": describe_machine(),
        "software": describe_software(),
        "serving": {"dtype": dtype, "kernels": kernels, "threads": torch.get_num_threads()},
        "settings": {**asdict(work), **asdict(adapters), **asdict(engine)},
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
        one = await self._system.round(case, load, jobs, on_done)
        self.steps.setdefault((case, load), []).extend(self._system.steps)
        return one


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

    def jobs_of(cell: Cell, count: int, part: str) -> list[Job]:
        return traffic.jobs(cell.case, count, f"{part} {cell.load.label}")

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
    return Sizes(most, most * (longest + 1), 0)


def markdown(result: Mapping[str, Any]) -> str:
    """Cells with the split of their steps, or the points of the curves."""
    if result["cells"]:
        page = cells_page(result)
        lines = ["", "## Where a decode step goes, ms", ""]
        heads = ("case", "clients", "step", "in the model", "around it")
        lines += [row(heads), row(["---", "---", "--:", "--:", "--:"])]
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
    lines = [row(heads), row(["---", "--:", "---", *["--:"] * 5])]
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
