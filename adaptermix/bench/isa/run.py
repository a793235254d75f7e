"""`adaptermix bench isa`: products and steps under each instruction set that this machine runs.

Every instruction set has processes of its own, which the environment holds down to it. What fails
under one is left out by name; the others are measured all the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console

from adaptermix.bench import forced
from adaptermix.bench.cases import Job
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import LLAMA, OURS, judge
from adaptermix.bench.isa.goals import BEFORE, TORCH, goals, scalars_of
from adaptermix.bench.isa.settings import IsaSettings
from adaptermix.bench.load import Load, Round
from adaptermix.bench.machine import ROOT, commit_of, describe_machine, describe_software
from adaptermix.bench.peers import llama_cpp
from adaptermix.bench.peers.site import engine_worker
from adaptermix.bench.peers.systems import Worker
from adaptermix.bench.products import CPU, FP32, INT8, ONEDNN, REFERENCE
from adaptermix.bench.prompts import make_prompts
from adaptermix.bench.subject import Subject, resolve
from router_engine.backends.cpu.build import build
from router_engine.backends.cpu.library import supported_isas
from router_engine.config import KernelConfig
from router_engine.errors import EngineError

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
    def nothing(self) -> Path:
        """A folder without adapters."""
        found = self.folder / "no-adapters"
        found.mkdir(exist_ok=True)
        return found

    @property
    def tokens(self) -> int:
        return max(*self.settings.prompt, CONTEXT) + self.settings.new_tokens + _MARGIN

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
    scalars, before = scalars_of(found), settings.before
    return {
        "kind": "isa",
        "model": subject.name,
        "machine": machine,
        "software": describe_software(),
        "serving": {"dtype": "bfloat16", "kernels": "cpu", "threads": threads},
        "settings": asdict(settings) | {"before": before and commit_of(before), "out": None},
        "isas": found,
        "missing": missing,
        "scalars": scalars,
        "goals": [asdict(judge(goal, {}, scalars)) for goal in goals(scalars)],
    }


def _one(run: _Run, isa: str, *, widest: bool) -> dict[str, Any]:
    """Products, then steps beside the others, of one instruction set."""
    found: dict[str, Any] = {"isa": isa, "products": [], "steps": []}
    with ExitStack() as stack:
        systems = _systems(run, isa, stack, widest=widest)
        if OURS not in systems:
            return found
        for rows in run.settings.rows:
            try:
                found["products"] += _products(run, isa, systems[OURS], rows)
            except BenchmarkError as error:
                run.leave_out(f"{isa}, products of {rows} rows", str(error))
        found["steps"] = uvloop.run(_steps(run, isa, systems))
    return found


def _systems(run: _Run, isa: str, stack: ExitStack, *, widest: bool) -> dict[str, Worker]:
    """Ours, plain torch, llama.cpp where it is built, and ours of another commit if asked for."""
    starts: dict[str, Callable[[], Worker]] = {
        OURS: lambda: _engine(run, isa, OURS),
        TORCH: lambda: _engine(run, isa, TORCH, "reference", "float32"),
        LLAMA: lambda: _llama(run, None if widest else isa),
    }
    if run.settings.before is not None:
        checkout = run.settings.before.absolute()
        starts[BEFORE] = lambda: _engine(run, isa, BEFORE, checkout=checkout)
    systems: dict[str, Worker] = {}
    for name, start in starts.items():
        try:
            systems[name] = start()
        except (BenchmarkError, OSError) as error:
            run.leave_out(f"{name}, {isa}", str(error))
        else:
            stack.callback(systems[name].close)
    return systems


def _engine(
    run: _Run,
    isa: str,
    name: str,
    kernels: str = "cpu",
    dtype: str | None = None,
    checkout: Path = ROOT,
) -> Worker:
    """An engine of ours without adapters, under the instruction set."""
    return engine_worker(
        run.subject,
        run.nothing,
        (max(run.settings.requests), run.tokens),
        kernels,
        variables=[f"OMP_NUM_THREADS={run.threads}", *forced.pairs(isa)],
        log=run.folder / f"{isa}-{name.replace(' ', '-')}.log",
        dtype=dtype,
        checkout=checkout,
    )


def _llama(run: _Run, isa: str | None) -> Worker:
    """llama.cpp as it was built for the instruction set; None: for this machine."""
    home = llama_cpp.home(run.settings.cache, isa)
    if not home.has(llama_cpp.recipe(isa)):
        raise BenchmarkError("no build of it: `bench peers --isa` makes one")
    sizes = run.threads, max(run.settings.requests), run.tokens
    model = llama_cpp.model_file(home, str(Path(run.subject.model).absolute()))
    return llama_cpp.start(home, model, run.nothing, sizes, run.subject.tokenizer.encode)


def _products(run: _Run, isa: str, ours: Worker, rows: int) -> list[dict[str, Any]]:
    message = {"op": "products", "rows": rows, "rounds": run.settings.rounds}
    answer = ours.call(message | {"contenders": CONTENDERS})
    for one, reason in answer["missing"].items():
        run.missing.setdefault(f"{one}, {isa}", reason)
    lines: list[dict[str, Any]] = answer["lines"]
    return lines


async def _steps(run: _Run, isa: str, systems: dict[str, Worker]) -> list[dict[str, Any]]:
    """Median milliseconds of decode steps and of prefills, all in turn; a practice first.

    Who fails has no further turns of that kind, and keeps what it has.
    """
    settings = run.settings
    kinds = [("decode", n) for n in settings.requests] + [("prefill", n) for n in settings.prompt]
    seconds: dict[tuple[str, int, str], list[float]] = {}  # {(kind, size, system): one a round}
    turns = [(*kind, name) for kind in kinds for name in systems]
    for number in range(settings.rounds + 1):
        for one in list(turns):
            kind, size, name = one
            work = _jobs(run, kind, size, f"{isa} {kind} {size} {number}")
            try:
                load = Load(clients=len(work))
                done = await systems[name].round("base", load, work, lambda: None)
            except BenchmarkError as error:
                turns.remove(one)
                run.leave_out(f"{name}, {isa}, {kind} of {size}", str(error))
                continue
            if number > 0:
                seconds.setdefault(one, []).append(_seconds(kind, done))
    return [
        {
            "kind": kind,
            "size": size,
            "system": name,
            "ms": 1e3 * median(values),
            "ms_rounds": [1e3 * value for value in values],
        }
        for (kind, size, name), values in seconds.items()
    ]


def _jobs(run: _Run, kind: str, size: int, seed: str) -> list[Job]:
    """New prompts each time: none is found in the prefix cache. `size`: requests, or tokens."""
    lengths, new = ([size], 2) if kind == "prefill" else ([CONTEXT] * size, run.settings.new_tokens)
    return [Job(text, new) for text in make_prompts(lengths, seed, run.subject.count_tokens)]


def _seconds(kind: str, done: Round) -> float:
    """Until the first token, or between two; the first gaps hold what is left of the prompts."""
    if kind == "prefill":
        return done.samples[0].ttft
    gaps: Sequence[float] = [gap for sample in done.samples for gap in sample.gaps[1:]]
    return median(gaps)
