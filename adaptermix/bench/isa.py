"""The targets by instruction set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import LLAMA, OURS
from adaptermix.bench.kernels import CPU, FP32, INT8, ONEDNN, REFERENCE
from adaptermix.bench.load import Load, Round
from adaptermix.bench.machine import ROOT, commit_of, origin
from adaptermix.bench.peers import llama_cpp
from adaptermix.bench.peers.settings import IsaSettings
from adaptermix.bench.peers.site import engine_worker
from adaptermix.bench.peers.systems import Worker
from adaptermix.bench.report import goal_table, missing_lines, provenance, row, table_head
from adaptermix.bench.subject import Subject, resolve
from adaptermix.bench.verdicts import Goal, judge
from adaptermix.bench.workload import Job, make_prompts
from router_engine.backends.cpu.build import build
from router_engine.backends.cpu.library import supported_isas
from router_engine.config import KernelConfig
from router_engine.errors import EngineError
from router_engine.processors import usable_cores

TORCH = "plain torch, fp32"
BEFORE = "adaptermix before"

Scalars = Mapping[str, Sequence[float]]
_Times = dict[tuple[str, int, str], list[float]]  # {(kind, size, system): ms, one a round}

_NARROW, _PAIRS, _TILES = "avx2", "avx512_bf16", "amx"
_PROMPT, _LONG = 64, 256  # tokens


def of_peak(isa: str, rows: int) -> str:
    """The scalar of all products of a step with so many rows."""
    return f"{isa} products {rows} of peak"


def scalars_of(isas: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Scalars that the targets are judged by, and ratios of every step to those of the others."""
    scalars: dict[str, list[float]] = {}
    times = {entry["isa"]: _times(entry) for entry in isas}
    for entry in isas:
        isa = entry["isa"]
        for rows in sorted({line["rows"] for line in entry["products"]}):
            lines = [line for line in entry["products"] if line["rows"] == rows]
            if all(CPU in line["us"] for line in lines):
                scalars[of_peak(isa, rows)] = [_of_peak(lines)]
        for (kind, size, name), theirs in times[isa].items():
            ours = times[isa].get((kind, size, OURS))
            if ours and name != OURS:
                scalars[f"{isa} {kind} {size} over {name}"] = _ratios(theirs, ours)
    here, there = (times.get(isa, {}).get(("prefill", _LONG, OURS)) for isa in (_TILES, _PAIRS))
    if here and there:
        scalars[f"{_TILES} prefill {_LONG} over {_PAIRS}"] = _ratios(there, here)
    return scalars


def goals(scalars: Scalars) -> list[Goal]:
    """Those of the instruction sets that the project has targets for."""
    what = f"{_NARROW}: products of {{}} rows over the peak in fp32"
    targets = [Goal(what.format(n), 0.7, scalar=of_peak(_NARROW, n)) for n in (64, 256)]
    for clients, bound in ((1, 1.1), (8, 2.0)):
        name = f"{_NARROW} decode {clients} over {LLAMA}"
        what = f"{_NARROW}: decode step against llama.cpp, {clients} requests"
        targets.append(Goal(what, bound, scalar=name))
    name = f"{_NARROW} prefill {_PROMPT} over {TORCH}"
    what = f"{_NARROW}: first token of {_PROMPT} tokens against plain torch in fp32"
    targets.append(Goal(what, 2, scalar=name))
    what = f"{_TILES}: prefill of {_LONG} tokens against {_PAIRS}"
    targets.append(Goal(what, 2, scalar=f"{_TILES} prefill {_LONG} over {_PAIRS}"))
    ends, starts = f" over {BEFORE}", f"{_PAIRS} "
    for name in scalars:
        if name.startswith(starts) and name.endswith(ends):
            what = name.removeprefix(starts).removesuffix(ends)
            targets.append(Goal(f"{_PAIRS}: {what}, against the commit before", 0.98, scalar=name))
    return targets


def _of_peak(lines: Sequence[Mapping[str, Any]]) -> float:
    """All products of a step: operations a second over what registers alone reach."""
    seconds = sum(line["count"] * line["us"][CPU] for line in lines) / 1e6
    at_peak = sum(line["count"] * line["flops"] / line["peak"] for line in lines)
    return float(at_peak / seconds)


def _times(entry: Mapping[str, Any]) -> _Times:
    return {(s["kind"], s["size"], s["system"]): s["ms_rounds"] for s in entry["steps"]}


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """One a round: what came in turn, under what else the machine did just then."""
    return [a / b for a, b in zip(theirs, ours, strict=False)]


CONTENDERS = (CPU, INT8, REFERENCE, FP32, ONEDNN)
CONTEXT = 64  # tokens of the prompts before timed decode steps
_MARGIN = 16  # tokens that a prompt may be longer in another tokenizer's eyes


@dataclass(frozen=True, slots=True)
class _Run:
    """The state that all instruction sets share."""

    settings: IsaSettings
    subject: Subject
    folder: Path
    threads: int
    console: Console
    missing: dict[str, str]

    @property
    def nothing(self) -> Path:
        """A folder without adapters."""
        folder = self.folder / "no-adapters"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def tokens(self) -> int:
        return max(*self.settings.prompt, CONTEXT) + self.settings.new_tokens + _MARGIN

    def leave_out(self, name: str, reason: str) -> None:
        self.missing[name] = reason
        self.console.print(f"{name} is left out: {reason}", style="yellow", markup=False)


def run_isa(settings: IsaSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError where nothing compiles."""
    console = Console(stderr=True)
    try:
        runnable = supported_isas(build(KernelConfig().cache))
    except EngineError as error:
        raise BenchmarkError(f"the C++ kernels cannot be built: {error}") from error
    with tempfile.TemporaryDirectory(prefix="adaptermix-isa-") as temporary:
        threads = settings.threads or usable_cores()
        subject, missing = resolve(settings.model), dict[str, str]()
        run = _Run(settings, subject, Path(temporary), threads, console, missing)
        measured = []
        for isa in settings.isa or runnable:
            console.print(f"instruction set {isa}", highlight=False)
            if isa not in runnable:
                run.leave_out(isa, "this machine, or the library, does not have it")
                continue
            measured.append(_one(run, isa, widest=isa == runnable[-1]))
    scalars, before = scalars_of(measured), settings.before
    return {
        **origin(
            "isa",
            subject.name,
            {"dtype": "bfloat16", "kernels": "cpu", "threads": threads},
            asdict(settings) | {"before": before and commit_of(before), "out": None},
        ),
        "isas": measured,
        "missing": missing,
        "scalars": scalars,
        "goals": [asdict(judge(goal, {}, scalars)) for goal in goals(scalars)],
    }


def _one(run: _Run, isa: str, *, widest: bool) -> dict[str, Any]:
    """Products, then steps beside the others, of one instruction set."""
    measured: dict[str, Any] = {"isa": isa, "products": [], "steps": []}
    with ExitStack() as stack:
        systems = _systems(run, isa, stack, widest=widest)
        if OURS not in systems:
            return measured
        for rows in run.settings.rows:
            try:
                measured["products"] += _products(run, isa, systems[OURS], rows)
            except BenchmarkError as error:
                run.leave_out(f"{isa}, products of {rows} rows", str(error))
        measured["steps"] = uvloop.run(_steps(run, isa, systems))
    return measured


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
    for contender, reason in answer["missing"].items():
        run.missing.setdefault(f"{contender}, {isa}", reason)
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
        for part in list(turns):
            kind, size, name = part
            work = _jobs(run, kind, size, f"{isa} {kind} {size} {number}")
            try:
                load = Load(clients=len(work))
                done = await systems[name].round("base", load, work, lambda: None)
            except BenchmarkError as error:
                turns.remove(part)
                run.leave_out(f"{name}, {isa}, {kind} of {size}", str(error))
                continue
            if number > 0:
                seconds.setdefault(part, []).append(_seconds(kind, done))
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


def markdown(result: Mapping[str, Any]) -> str:
    """Steps and prefill first, then every product."""
    settings = result["settings"]
    lines = ["# Each instruction set", "", provenance(result), ""]
    lines += [
        *goal_table(result["goals"]),
        "",
        f"Medians of {settings['rounds']} rounds. Every instruction set has processes of its own, "
        "held down to it by the environment (ours, ATen, oneDNN, MKL); llama.cpp is compiled for "
        "it. The peak is what fused multiply-adds in fp32 reach in registers, on all threads, in "
        "turn with the products, for other tenants of a machine slow both: products of bf16 or "
        "int8 may be above it where the processor has instructions for them. Decode: one token of "
        "so many requests. Prefill: one prompt of so many tokens, to the first token.",
        "",
        *_step_lines(result),
        "",
        *_product_lines(result),
        "",
    ]
    lines += missing_lines(result["missing"])
    return "\n".join([*lines, ""])


def step_table(result: Mapping[str, Any]) -> list[str]:
    """Median milliseconds, a row for each instruction set and system."""
    isas = result["isas"]
    sizes = list(dict.fromkeys((s["kind"], s["size"]) for entry in isas for s in entry["steps"]))
    heads = ["instruction set", "system", *(f"{kind} {size}, ms" for kind, size in sizes)]
    lines = table_head(heads, (0, 1))
    for entry in isas:
        for system in dict.fromkeys(step["system"] for step in entry["steps"]):
            steps = [step for step in entry["steps"] if step["system"] == system]
            ms = {(step["kind"], step["size"]): f"{step['ms']:.1f}" for step in steps}
            lines.append(row([entry["isa"], system, *(ms.get(size, "-") for size in sizes)]))
    return lines


def expectations(result: Mapping[str, Any]) -> list[str]:
    """Our rates on a processor with each instruction set, in a user's words."""
    steps = [step for entry in result["isas"] for step in entry["steps"] if step["system"] == OURS]
    clients = sorted({step["size"] for step in steps if step["kind"] == "decode"})
    prompts = sorted({step["size"] for step in steps if step["kind"] == "prefill"})
    heads = ["instruction set", *(f"tokens/s, {n} at once" for n in clients)]
    heads += [f"first token of {n}, ms" for n in prompts]
    lines = table_head(heads)
    for entry in result["isas"]:
        own = {(s["kind"], s["size"]): s["ms"] for s in entry["steps"] if s["system"] == OURS}
        rates = [1e3 * n / own["decode", n] if ("decode", n) in own else None for n in clients]
        waits = [own.get(("prefill", n)) for n in prompts]
        cells = [f"{value:.0f}" if value is not None else "-" for value in (*rates, *waits)]
        lines.append(row([entry["isa"], *cells]))
    return lines


def peak_table(result: Mapping[str, Any]) -> list[str]:
    """Of all products of a step: operations a second over the peak of fp32."""
    rows = result["settings"]["rows"]
    lines = table_head(["products over the fp32 peak", *(f"{n} rows" for n in rows)])
    for entry in result["isas"]:
        shares = (result["scalars"].get(of_peak(entry["isa"], n)) for n in rows)
        lines.append(row([entry["isa"], *(f"{s[0]:.2f}" if s else "-" for s in shares)]))
    return lines


def _step_lines(result: Mapping[str, Any]) -> list[str]:
    heads = ("instruction set", "what", "size", "system", "ms", "over rounds")
    lines = table_head(heads, (0, 1, 3))
    for entry in result["isas"]:
        for step in entry["steps"]:
            spread = f"{min(step['ms_rounds']):.1f}-{max(step['ms_rounds']):.1f}"
            names = [entry["isa"], step["kind"], str(step["size"]), step["system"]]
            lines.append(row([*names, f"{step['ms']:.2f}", spread]))
    return lines


def _product_lines(result: Mapping[str, Any]) -> list[str]:
    lines = [(entry, line) for entry in result["isas"] for line in entry["products"]]
    names = list(dict.fromkeys(name for _, line in lines for name in line["us"]))
    heads = ["instruction set", "product", "rows", *(f"{name} us" for name in names)]
    heads += ["cpu GFLOP/s", "of peak", "best fp32 GFLOP/s"]
    table = table_head(heads, (0, 1))
    for entry, line in lines:
        us = line["us"]
        shown = [f"{us[name]:.0f}" if name in us else "-" for name in names]
        speed = line["flops"] / us[CPU] / 1e3 if CPU in us else None
        rates = [f"{speed:.0f}", f"{1e9 * speed / line['peak']:.2f}"] if speed else ["-", "-"]
        best = f"{line['flops'] / us[FP32] / 1e3:.0f}" if FP32 in us else "-"
        table.append(row([entry["isa"], line["product"], str(line["rows"]), *shown, *rates, best]))
    return table
