"""`adaptermix bench isa`: products and steps under each instruction set that this machine runs.

Every instruction set has processes of its own, which the environment holds down to it. What fails
under one is left out by name; the others are measured all the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console

from benchmarks import forced
from benchmarks.cases import Job
from benchmarks.errors import BenchmarkError
from benchmarks.goals import LLAMA, OURS
from benchmarks.isa.settings import IsaSettings
from benchmarks.load import Load, Round
from benchmarks.machine import describe_machine, describe_software
from benchmarks.peers import llama_cpp
from benchmarks.peers.site import engine_worker
from benchmarks.peers.systems import Worker
from benchmarks.products import CPU, FP32, INT8, ONEDNN, REFERENCE
from benchmarks.prompts import make_prompts
from benchmarks.subject import Subject, resolve
from router_engine.config import KernelConfig
from router_engine.errors import EngineError
from router_engine.kernels.cpu.build import build
from router_engine.kernels.cpu.library import supported_isas

CONTENDERS = (CPU, INT8, REFERENCE, FP32, ONEDNN)
CONTEXT = 64  # tokens of the prompts before timed decode steps
_MARGIN = 16  # tokens that a prompt may be longer in another tokenizer's eyes


@dataclass(frozen=True, slots=True)
class _Run:
    """What all instruction sets share."""

    settings: IsaSettings
    subject: Subject
    folder: Path
    threads: int
    console: Console
    missing: dict[str, str]

    @property
    def tokens(self) -> int:
        return max(self.settings.prompt, CONTEXT) + self.settings.new_tokens + _MARGIN

    def leave_out(self, name: str, reason: str) -> None:
        self.missing[name] = reason
        self.console.print(f"{name} is left out: {reason}", style="yellow", markup=False)


def run_isa(settings: IsaSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError where nothing compiles."""
    console, machine = Console(stderr=True), describe_machine()
    try:
        runnable = supported_isas(build(KernelConfig().cache))
    except EngineError as error:
        raise BenchmarkError(f"the C++ kernels cannot be built: {error}") from error
    with tempfile.TemporaryDirectory(prefix="adaptermix-isa-") as temporary:
        threads = settings.threads or machine["cores"]
        subject, missing = resolve(settings.model), dict[str, str]()
        run = _Run(settings, subject, Path(temporary), threads, console, missing)
        found = []
        for isa in settings.isa or runnable:
            console.print(f"instruction set {isa}", highlight=False)
            if isa not in runnable:
                run.leave_out(isa, "this machine, or the library, does not have it")
                continue
            found.append(_one(run, isa, widest=isa == runnable[-1]))
    return {
        "kind": "isa",
        "model": subject.name,
        "machine": machine,
        "software": describe_software(),
        "serving": {"dtype": "bfloat16", "kernels": "cpu", "threads": threads},
        "settings": asdict(settings),
        "isas": found,
        "missing": missing,
    }


def _one(run: _Run, isa: str, *, widest: bool) -> dict[str, Any]:
    """Products, then steps beside llama.cpp, of one instruction set."""
    found: dict[str, Any] = {"isa": isa, "products": [], "steps": []}
    with ExitStack() as stack:
        try:
            ours = _ours(run, isa, stack)
            systems = {OURS: ours}
            found |= ours.call({"op": "peak"})
        except (BenchmarkError, OSError) as error:
            run.leave_out(isa, str(error))
            return found
        _beside(run, isa, systems, stack, widest=widest)
        for rows in run.settings.rows:
            try:
                found["products"] += _products(run, isa, ours, rows)
            except BenchmarkError as error:
                run.leave_out(f"{isa}, products of {rows} rows", str(error))
        found["steps"] = uvloop.run(_steps(run, isa, systems))
    return found


def _ours(run: _Run, isa: str, stack: ExitStack) -> Worker:
    """Our engine without adapters, under the instruction set."""
    nothing = run.folder / "no-adapters"
    nothing.mkdir(exist_ok=True)
    worker = engine_worker(
        run.subject,
        nothing,
        (max(run.settings.requests), run.tokens),
        "cpu",
        variables=[f"OMP_NUM_THREADS={run.threads}", *forced.pairs(isa)],
        log=run.folder / f"{isa}.log",
    )
    stack.callback(worker.close)
    return worker


def _beside(
    run: _Run, isa: str, systems: dict[str, Worker], stack: ExitStack, *, widest: bool
) -> None:
    """llama.cpp, where its build for the instruction set is there: nothing is installed here."""
    of = None if widest else isa
    home = llama_cpp.home(run.settings.cache, of)
    if not home.has(llama_cpp.recipe(of)):
        run.leave_out(f"{LLAMA}, {isa}", "no build of it: `bench peers --isa` makes one")
        return
    nothing = run.folder / "no-adapters"
    sizes = run.threads, max(run.settings.requests), run.tokens
    try:
        model = llama_cpp.model_file(home, str(Path(run.subject.model).absolute()))
        worker = llama_cpp.start(home, model, nothing, sizes, run.subject.tokenizer.encode)
    except (BenchmarkError, OSError) as error:
        run.leave_out(f"{LLAMA}, {isa}", str(error))
        return
    stack.callback(worker.close)
    systems[LLAMA] = worker


def _products(run: _Run, isa: str, ours: Worker, rows: int) -> list[dict[str, Any]]:
    message = {"op": "products", "rows": rows, "rounds": run.settings.rounds}
    answer = ours.call(message | {"contenders": CONTENDERS})
    for one, reason in answer["missing"].items():
        run.missing.setdefault(f"{one}, {isa}", reason)
    lines: list[dict[str, Any]] = answer["lines"]
    return lines


async def _steps(run: _Run, isa: str, systems: dict[str, Worker]) -> list[dict[str, Any]]:
    """Median milliseconds of a decode step and of a prefill, all in turn; a practice first.

    Who fails has no further turns of that kind, and keeps what it has.
    """
    settings = run.settings
    kinds = [("decode", n) for n in settings.requests] + [("prefill", 1)]
    seconds: dict[tuple[str, int, str], list[float]] = {}
    turns = [(*kind, name) for kind in kinds for name in systems]
    for number in range(settings.rounds + 1):
        for one in list(turns):
            kind, requests, name = one
            work = _jobs(run, kind, requests, f"{isa} {kind} {requests} {number}")
            try:
                load = Load(clients=requests)
                done = await systems[name].round("base", load, work, lambda: None)
            except BenchmarkError as error:
                turns.remove(one)
                run.leave_out(f"{name}, {isa}, {kind}, {requests} requests", str(error))
                continue
            if number > 0:
                seconds.setdefault(one, []).append(_seconds(kind, done))
    return [
        {
            "kind": kind,
            "requests": requests,
            "system": name,
            "ms": 1e3 * median(values),
            "ms_rounds": [1e3 * value for value in values],
        }
        for (kind, requests, name), values in seconds.items()
    ]


def _jobs(run: _Run, kind: str, requests: int, seed: str) -> list[Job]:
    """New prompts each time: none is found in the prefix cache."""
    length = run.settings.prompt if kind == "prefill" else CONTEXT
    texts = make_prompts([length] * requests, seed, run.subject.count_tokens)
    return [Job(text, 2 if kind == "prefill" else run.settings.new_tokens) for text in texts]


def _seconds(kind: str, done: Round) -> float:
    """Until the first token, or between two; the first gaps hold what is left of the prompts."""
    if kind == "prefill":
        return done.samples[0].ttft
    gaps: Sequence[float] = [gap for sample in done.samples for gap in sample.gaps[1:]]
    return median(gaps)
