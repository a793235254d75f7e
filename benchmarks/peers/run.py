"""`adaptermix bench peers`: ours and every peer in one run, round by round, and the targets."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from benchmarks.cases import Job
from benchmarks.clients import GenerateClient
from benchmarks.errors import BenchmarkError
from benchmarks.goals import GOALS, INT8, MIXED, OFFLINE, OURS, OWN, PEERS, judge
from benchmarks.load import Load
from benchmarks.machine import describe_machine, describe_software
from benchmarks.matrix import Cell, System
from benchmarks.peers import llama_cpp, transformers_peft, vllm_cpu
from benchmarks.peers.context import Context, OpenPeer
from benchmarks.peers.measure import Measured, Measurement, Pace, turn
from benchmarks.peers.memory import above_import
from benchmarks.peers.plan import (
    LONGEST_PROMPT,
    SUITES,
    Suite,
    cells,
    jobs,
    mixed_bytes_over_one,
    rates,
    traffics,
    wave,
    write_suites,
)
from benchmarks.peers.systems import HttpSystem, Worker
from benchmarks.process import Running, info, publish, started
from benchmarks.report import cell_of
from benchmarks.serve import server_options
from benchmarks.settings import RESULTS, PeerSettings
from benchmarks.subject import Subject, resolve

KV_BYTES = 256 << 20
_MEMORY_WAVES = 3  # they fill the cache, so that all of it is resident
GPU_RESULTS = RESULTS / "gpu.json"
_MARGIN = 16  # tokens that a prompt may be longer in another tokenizer's eyes
_OPEN: Mapping[str, OpenPeer] = {
    "transformers": transformers_peft.open_peer,
    "vllm": vllm_cpu.open_peer,
    "llama": llama_cpp.open_peer,
}


@dataclass(frozen=True, slots=True)
class _Run:
    """What the parts of a run share."""

    settings: PeerSettings
    subject: Subject
    folder: Path
    folders: Mapping[str, Sequence[Path]]
    threads: int
    stack: ExitStack
    console: Console

    @property
    def tokens(self) -> int:
        """The most of a prompt and its answer."""
        return LONGEST_PROMPT + self.settings.new_tokens + _MARGIN

    def options(self, store: str, suites: Sequence[Suite] = SUITES) -> list[str]:
        """Of `adaptermix serve`, with room for the adapters of `suites`."""
        options = server_options(self.subject, "auto", self.settings.kernels, self.settings.threads)
        rows = sum(suite.rank_rows for suite in suites)
        options += ["--store", str(self.folder / store), "--max-rank-rows", str(rows)]
        return [*options, "--kv-memory", str(KV_BYTES), "--encoder", "none"]


def run_peers(settings: PeerSettings) -> dict[str, Any]:
    """Install, start, measure in turn, judge; the result as written to JSON.

    What a peer cannot do is left out, with the reason in the result: all of it where it cannot be
    installed or started, else the cell that failed.
    """
    console = Console(stderr=True)
    subject = resolve(settings.model)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="adaptermix-peers-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        folders = write_suites(subject, folder / "adapters")
        threads = settings.threads or machine["cores"]
        run = _Run(settings, subject, folder, folders, threads, stack, console)
        scalars: dict[str, Sequence[float]] = {"start_seconds": _starts(run)}
        opened, versions, missing = _open_peers(run)
        running = _serve(run, run.options("store"), "server.log", folders)
        worker = _offline(run)
        systems: dict[str, System] = {OURS: _http(running), OFFLINE: worker, **opened}
        if settings.int8:
            quantized = [*run.options("int8"), "--quantization", "int8"]
            systems[INT8] = _http(_serve(run, quantized, "int8.log", {}))
        measured = _measure(run, systems, forgiven=opened)
        missing |= measured.missing
        scalars |= _steps(worker, settings)
        scalars |= _bytes_read(run, measured)
        scalars |= _memory(run)
        scalars |= gpu_scalars(GPU_RESULTS)
        serving = {
            "dtype": info(running.url)["dtype"],
            "kernels": settings.kernels,
            "threads": threads,
        }
    rounds_of = measured.rounds.items()
    by_cell = {cell: [one.tokens_per_second for one in rounds] for cell, rounds in rounds_of}
    made = traffics(settings.new_tokens, subject.count_tokens)
    return {
        "kind": "peers",
        "model": subject.name,
        "machine": machine,
        "software": describe_software(),
        "serving": serving,
        "settings": asdict(settings),
        "versions": versions,
        "missing": missing,
        "timing": dict(measured.timing),
        "scalars": scalars,
        "cells": [
            cell_of(made[cell.suite].population.title(cell.case), cell, rounds)
            for cell, rounds in rounds_of
        ],
        "goals": [asdict(judge(goal, rates(by_cell), scalars)) for goal in GOALS],
    }


def gpu_scalars(path: Path) -> dict[str, Sequence[float]]:
    """The `scalars` of the file that benchmarks/gpu leaves, where it did run on a GPU."""
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Sequence[float]] = result["scalars"] if result["machine"]["gpu"] else {}
    return found


def _starts(run: _Run) -> list[float]:
    """Seconds from launch to ready. The first start fills caches and is not counted."""
    seconds = []
    for number in range(run.settings.starts + 1):
        run.console.print(f"start {number} of {run.settings.starts}")
        with started(run.options("empty"), run.folder / "start.log") as running:
            seconds.append(running.start_seconds)
    return seconds[1:]


def _serve(
    run: _Run, options: Sequence[str], log: str, folders: Mapping[str, Sequence[Path]]
) -> Running:
    running = run.stack.enter_context(started(options, run.folder / log))
    for paths in folders.values():
        publish(running.url, paths, ["a text"])
    return running


def _http(running: Running) -> HttpSystem:
    return HttpSystem(running, GenerateClient, stops=False)


def _offline(run: _Run) -> Worker:
    settings = run.settings
    threads = str(run.threads)
    command = [
        *("env", f"OMP_NUM_THREADS={threads}", "OMP_WAIT_POLICY=PASSIVE"),
        *(sys.executable, "-m", "benchmarks.peers.workers.engine", run.subject.model),
        *(str(run.folders[OWN][0].parent), str(max(settings.concurrency)), str(run.tokens)),
        settings.kernels,
    ]
    worker = Worker(command, run.folder / "offline.log", run.subject.tokenizer.encode)
    run.stack.callback(worker.close)
    return worker


def _open_peers(run: _Run) -> tuple[dict[str, System], dict[str, Any], dict[str, str]]:
    systems: dict[str, System] = {}
    versions: dict[str, Any] = {}
    missing: dict[str, str] = {}
    suite = next(suite for suite in SUITES if suite.name == PEERS)
    for name in run.settings.chosen:
        run.console.print(f"installing and starting {name}")
        scratch = run.folder / name
        scratch.mkdir()
        context = Context(
            model=str(Path(run.subject.model).absolute()),
            adapters=tuple(run.folders[PEERS]),
            rank=max(suite.ranks),
            clients=max(run.settings.concurrency),
            tokens=run.tokens,
            threads=run.threads,
            cache=run.settings.cache,
            scratch=scratch,
            tokenize=run.subject.tokenizer.encode,
            stack=run.stack,
        )
        try:
            opened = _OPEN[name](context)
        except (BenchmarkError, OSError) as error:
            missing[name] = str(error)
            run.console.print(f"{name} is left out: {error}", style="yellow", markup=False)
        else:
            systems |= opened.systems
            versions[name] = dict(opened.versions)
    return systems, versions, missing


def _measure(
    run: _Run, systems: Mapping[str, System], *, forgiven: Mapping[str, System]
) -> Measured:
    settings = run.settings
    made = traffics(settings.new_tokens, run.subject.count_tokens)

    def jobs_of(cell: Cell, turn: str) -> list[Job]:
        return jobs(cell, turn, made[cell.suite])

    measurement = Measurement(systems, jobs_of, forgiven, run.console)
    pace = Pace(settings.rounds, settings.cell_seconds, settings.minutes)
    return uvloop.run(measurement.run(cells(settings, list(systems)), pace))


def _steps(worker: Worker, settings: PeerSettings) -> dict[str, Sequence[float]]:
    """Time of a decode step over that of its best products, in turn; the first is not counted."""
    found: dict[str, Sequence[float]] = {}
    for rows in (8, 32):
        if rows not in settings.concurrency or settings.kernels != "cpu":
            continue
        ratios = []
        for _ in range(settings.rounds + 1):
            steps = worker.call({"op": "decode", "rows": rows})["seconds"]
            products = worker.call({"op": "products", "rows": rows})["seconds"]
            ratios.append(sorted(steps)[len(steps) // 2] / products)
        found[f"step_over_products_{rows}"] = ratios[1:]
    return found


def _bytes_read(run: _Run, measured: Measured) -> dict[str, Sequence[float]]:
    weights = 2 * run.subject.num_parameters()  # in bf16, whatever the server holds them in
    traffic = traffics(run.settings.new_tokens, run.subject.count_tokens)[MIXED]
    for cell, rounds in measured.rounds.items():
        if cell.suite == MIXED:
            turns = [turn(number) for number in range(len(rounds))]
            ratio = mixed_bytes_over_one(run.subject, traffic, weights, turns, cell)
            return {"mixed_bytes_over_one": [ratio]}
    return {}


def _memory(run: _Run) -> dict[str, Sequence[float]]:
    """Of both processes of a server with room for eight adapters, once its cache has filled."""
    suite = next(suite for suite in SUITES if suite.name == PEERS)
    load = Load(clients=max(run.settings.concurrency))
    cell = Cell(OURS, "base", load, _MEMORY_WAVES * wave(load.clients or 1), PEERS)
    traffic = traffics(run.settings.new_tokens, run.subject.count_tokens)[PEERS]
    with started(run.options("memory", [suite]), run.folder / "memory.log") as running:
        work = jobs(cell, "memory", traffic)
        uvloop.run(_http(running).round(cell.case, load, work, lambda: None))
        above = above_import(running.pid) - KV_BYTES
    return {"memory_over_weights": [above / (2 * run.subject.num_parameters())]}
