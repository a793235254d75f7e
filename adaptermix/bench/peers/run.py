"""`adaptermix bench peers`: ours and every peer in one run, round by round, and the targets.

What a machine can't do, and what fails, is left out by name, and the rest is written all the same.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from adaptermix.bench.goals import (
    INT8,
    MIXED,
    OFFLINE,
    OURS,
    PEERS,
    goals_of,
)
from adaptermix.bench.load import Load
from adaptermix.bench.machine import above_import, origin
from adaptermix.bench.peers.plan import (
    SUITES,
    cells,
    jobs,
    key_of,
    mixed_bytes_over_one,
    rates,
    traffics,
    wave,
)
from adaptermix.bench.peers.settings import PeerSettings
from adaptermix.bench.peers.site import (
    KV_BYTES,
    PeerSite,
    offline,
    open_peers,
    over_http,
    prepared,
    serve,
    serving_of,
)
from adaptermix.bench.peers.systems import Worker
from adaptermix.bench.report import (
    NUMBERS,
    cell_of,
    goal_table,
    numbers,
    provenance,
    row,
    table_head,
)
from adaptermix.bench.rounds import Cell, Measured, Pace, System, measure_at_pace, round_title
from adaptermix.bench.server import started
from adaptermix.bench.settings import OUT
from adaptermix.bench.verdicts import judge
from adaptermix.bench.workload import Job
from router_engine.backends.cpu.build import build
from router_engine.backends.cpu.library import supported_isas
from router_engine.config import KernelConfig
from router_engine.errors import EngineError

_MEMORY_WAVES = 3  # they fill the cache, so that all of it is resident
GPU_RESULTS = OUT / "gpu" / "gpu.json"  # of benchmarks/gpu/run.sh
_OWN_SYSTEMS = (OURS, OFFLINE, INT8)

Scalars = dict[str, Sequence[float]]
T = TypeVar("T")


def run_peers(settings: PeerSettings) -> dict[str, Any]:
    """Install, start, measure in turn, judge; the result as written to JSON.

    What can't be installed, started or measured is left out, with the reason in `missing`; what of
    that is ours is in `failed`, too. Raises BenchmarkError where our server doesn't start at all.
    """
    with prepared(settings) as site:
        running = serve(site, site.options("store"), "server.log", site.folders)
        scalars: Scalars = {"start_seconds": _starts(site)}
        opened, versions = open_peers(site)
        serving = serving_of(site, running)
        systems: dict[str, System] = {OURS: over_http(running), **_others(site), **opened}
        measured = _measure(site, systems)
        site.missing.update(measured.missing)
        scalars |= _scalars(site, measured, systems)
    result = {
        **origin("peers", site.subject.name, serving, asdict(settings)),
        "versions": versions,
        "missing": site.missing,
        "timing": dict(measured.timing),
        "scalars": scalars,
        "cells": _cells(site, measured),
    }
    nothing: list[dict[str, Any]] = []
    goals = part(site, "goals", lambda: _judged(site, measured, scalars), nothing)
    return result | {"goals": goals, "failed": failed(site.missing)}


def failed(missing: Mapping[str, str]) -> list[str]:
    """Missing parts that are ours: parts of the run, and cells of our own systems."""
    own = tuple(f"{system}," for system in _OWN_SYSTEMS)
    return [name for name in missing if name in (*_OWN_SYSTEMS, *PARTS) or name.startswith(own)]


PARTS = ("steps", "bytes", "memory", "gpu", "goals")  # that come after the rounds


def part(site: PeerSite, name: str, make: Callable[[], T], otherwise: T) -> T:
    """The value of `make`, or `otherwise` where it fails, whatever the reason."""
    try:
        return make()
    except Exception as error:
        site.leave_out(name, error)
        return otherwise


def _others(site: PeerSite) -> dict[str, System]:
    """Our systems beside the server, as far as they start."""

    def int8() -> System:
        quantized = [*site.options("int8"), "--quantization", "int8"]
        return over_http(serve(site, quantized, "int8.log", {}))

    def alone() -> System:
        return offline(site)

    makers = {OFFLINE: alone} | ({INT8: int8} if site.settings.int8 else {})
    systems = {name: part(site, name, make, None) for name, make in makers.items()}
    return {name: system for name, system in systems.items() if system is not None}


def _scalars(site: PeerSite, measured: Measured, systems: Mapping[str, System]) -> Scalars:
    """All that isn't a rate, as far as it can be measured."""
    worker = systems.get(OFFLINE)
    scalars: Scalars = {}
    makers: dict[str, Callable[[], Scalars]] = {
        "bytes": lambda: _bytes_read(site, measured),
        "memory": lambda: _memory(site),
        "gpu": lambda: gpu_scalars(GPU_RESULTS),
    }
    if isinstance(worker, Worker):
        makers = {"steps": lambda: _steps(site, worker)} | makers
    for name, make in makers.items():
        nothing: Scalars = {}
        scalars |= part(site, name, make, nothing)
    return scalars


def _cells(site: PeerSite, measured: Measured) -> list[dict[str, Any]]:
    made = traffics(site.settings.new_tokens, site.subject.count_tokens)
    return [
        cell_of(made[cell.suite].population.title(cell.case), cell, rounds)
        for cell, rounds in measured.rounds.items()
    ]


def _judged(site: PeerSite, measured: Measured, scalars: Scalars) -> list[dict[str, Any]]:
    targets = goals_of(site.settings.isa or _widest())
    rounds_of = measured.rounds.items()
    by_cell = {cell: [done.tokens_per_second for done in rounds] for cell, rounds in rounds_of}
    return [asdict(judge(goal, rates(by_cell), scalars)) for goal in targets]


def _widest() -> str | None:
    """The widest instruction set of ours that runs here."""
    try:
        return supported_isas(build(KernelConfig().cache))[-1]
    except (EngineError, IndexError):
        return None


def gpu_scalars(path: Path) -> Scalars:
    """The `scalars` of the file that benchmarks/gpu leaves, where it did run on a GPU."""
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    scalars: Scalars = result["scalars"] if result["machine"]["gpu"] else {}
    return scalars


def _starts(site: PeerSite) -> list[float]:
    """Seconds from launch to ready. The server that is there, and sleeps, has filled the caches."""
    seconds = []
    for number in range(site.settings.starts):
        site.console.print(f"start {number + 1} of {site.settings.starts}")
        with started(site.options("empty"), site.folder / "start.log") as running:
            seconds.append(running.start_seconds)
    return seconds


def _measure(site: PeerSite, systems: Mapping[str, System]) -> Measured:
    settings = site.settings
    made = traffics(settings.new_tokens, site.subject.count_tokens)

    def jobs_of(cell: Cell, part: str) -> list[Job]:
        return jobs(cell, part, made[cell.suite])

    pace = Pace(settings.rounds, settings.cell_seconds, settings.minutes)
    chosen = cells(settings, list(systems))
    return uvloop.run(
        measure_at_pace(
            systems, chosen, pace, jobs_of, lambda cell: str(key_of(cell)), site.console
        )
    )


def _steps(site: PeerSite, worker: Worker) -> Scalars:
    """Time of a decode step over that of its best products, in turn; the first is not counted."""
    scalars: Scalars = {}
    settings = site.settings
    for rows in (8, 32):
        if rows not in settings.concurrency or settings.kernels != "cpu":
            continue
        ratios = []
        for _ in range(settings.rounds + 1):
            steps = worker.call({"op": "decode", "rows": rows})["seconds"]
            products = worker.call({"op": "products", "rows": rows})
            ratios.append(sorted(steps)[len(steps) // 2] / products["seconds"])
        site.missing.update({f"product: {n}": why for n, why in products["missing"].items()})
        scalars[f"step_over_products_{rows}"] = ratios[1:]
    return scalars


def _bytes_read(site: PeerSite, measured: Measured) -> Scalars:
    weights = 2 * site.subject.num_parameters()  # in bf16, whatever the server holds them in
    traffic = traffics(site.settings.new_tokens, site.subject.count_tokens)[MIXED]
    for cell, rounds in measured.rounds.items():
        if cell.suite == MIXED:
            turns = [round_title(number) for number in range(len(rounds))]
            ratio = mixed_bytes_over_one(site.subject, traffic, weights, turns, cell)
            return {"mixed_bytes_over_one": [ratio]}
    return {}


def _memory(site: PeerSite) -> Scalars:
    """Of both processes of a server with room for eight adapters, once its cache has filled."""
    suite = next(suite for suite in SUITES if suite.name == PEERS)
    load = Load(clients=max(site.settings.concurrency))
    cell = Cell(OURS, "base", load, _MEMORY_WAVES * wave(load.clients or 1), PEERS)
    traffic = traffics(site.settings.new_tokens, site.subject.count_tokens)[PEERS]
    with started(site.options("memory", [suite]), site.folder / "memory.log") as running:
        work = jobs(cell, "memory", traffic)
        uvloop.run(over_http(running).round(cell.case, load, work, lambda: None))
        above = above_import(running.pid) - KV_BYTES
    return {"memory_over_weights": [above / (2 * site.subject.num_parameters())]}


def markdown(result: Mapping[str, Any]) -> str:
    """Targets first, then every cell."""
    lines = ["# AdapterMix beside its peers", "", provenance(result), ""]
    lines += goal_table(result["goals"])
    settings, rounds = result["settings"], result["timing"]["round_seconds"] or [0.0]
    lines += [
        "",
        f"Ratios are those of the medians of {len(rounds)} rounds, all systems in turn; a peer "
        "that has no turn is stopped. Throughput is output tokens a second with the prefill of the "
        f"prompts in it: prompts of 48 to 80 tokens, {settings['new_tokens']} new tokens, greedy, "
        "none ended early. All systems are given the same requests and all cores. A round of a "
        "cell is one request a client, again and again for "
        f"{settings['cell_seconds']:g} s by those who are faster than that. "
        "Against peers the adapters have rank 16 on all seven linear layers, else rank 8 on q, k, "
        f"v, o. A round of everything took {statistics.median(rounds):.0f} s.",
        "",
    ]
    for name, versions in result["versions"].items():
        listed = ", ".join(f"{package} {number}" for package, number in versions.items())
        lines.append(f"- {name}: {listed}")
    for name, reason in result["missing"].items():
        lines.append(f"- {name} is missing: {' '.join(reason.splitlines()[:2])}")
    heads = ["system", "adapters", "case", "clients", "requests a round", *NUMBERS]
    lines += ["", *table_head(heads, (0, 1, 2))]
    for cell in result["cells"]:
        names = [cell["system"], cell["suite"], cell["title"], cell["load"]]
        lines.append(row([*names, str(cell["requests_per_round"]), *numbers(cell)]))
    return "\n".join([*lines, ""])
