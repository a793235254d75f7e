"""The page of a run, from what files there are: goals, then what each phase has found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptermix.bench.goals import GOALS
from adaptermix.bench.report import row, table_head
from adaptermix.bench.verdicts import judge
from benchmarks.gpu.churn import CLOSED_LOOP
from benchmarks.gpu.memory import START
from benchmarks.gpu.records import read_phase, write_json
from benchmarks.gpu.run import PHASES
from benchmarks.gpu.scalars import Found, floor_seconds, graph_seconds, scalars, step_seconds
from benchmarks.gpu.settings import RANK, SIZES

GPU_GOALS = tuple(goal for goal in GOALS if (goal.scalar or "").startswith("gpu_"))


def write_report(out: Path) -> str:
    """Write `gpu.json` (for `adaptermix bench peers`) and `gpu.md`; returns the page.

    Raises FileNotFoundError where no phase has left a file.
    """
    paths = {name: out / f"{name}.json" for name in PHASES}
    documents = {name: read_phase(path) for name, path in paths.items()}
    there = {name: document for name, document in documents.items() if document is not None}
    if not there:
        raise FileNotFoundError(f"{out} has no file of {', '.join(PHASES)}")
    latest = max(there, key=lambda name: paths[name].stat().st_mtime)
    identity = there[latest]["identity"]
    whole = {name: each for name, each in there.items() if each["identity"] == identity}
    found = {name: _measured(each["cells"]) for name, each in whole.items()}
    values = scalars(found, SIZES[identity["shape"]])
    write_json(
        out / "gpu.json",
        {"kind": "gpu", **identity, "scalars": values, "phases": found},
    )
    page = "\n".join(_lines(identity, found, values, whole, set(there) - set(whole))) + "\n"
    (out / "gpu.md").write_text(page, encoding="utf-8")
    return page


def _measured(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell["found"] for name, cell in cells.items() if cell["status"] == "measured"}


def _lines(
    identity: Mapping[str, Any],
    found: Found,
    values: Mapping[str, Sequence[float]],
    documents: Mapping[str, Any],
    others: set[str],
) -> Iterator[str]:
    machine = identity["machine"]
    yield from ("# A GPU", "")
    yield (
        f"{machine['gpu'] or 'no GPU: ' + machine['processor']}, torch {identity['torch']}, "
        f"commit {identity['commit']}, sources {identity['sources']}. Shape {identity['shape']} "
        f"in bfloat16, random weights, adapters of rank {RANK} on {identity['targets']} linears; "
        f"medians of {identity['rounds']} rounds of {identity['steps']} steps."
    )
    if others:
        yield from ("", f"Of another commit or other settings, left out: {_listed(others)}.")
    yield from ("", "## Goals", "", *_goals(values, on_a_gpu=bool(machine["gpu"])))
    parts = {
        "steps": ("Decode steps", _steps),
        "prefill": ("Prefill", _prefills),
        "profile": ("Three steps by kernel", _profiles),
        "churn": ("Adapters that arrive", _churn),
        "memory": ("A start, and memory", _memory),
        "peft": ("PEFT", _peft),
        "tests": ("Tests", _tests),
    }
    for name, (title, write) in parts.items():
        if found.get(name):
            yield from ("", f"## {title}", "", *write(found))
    yield from ("", "## Not measured", "", *_missing(documents))


def _goals(values: Mapping[str, Sequence[float]], *, on_a_gpu: bool) -> Iterator[str]:
    yield from table_head(("what", "goal", "found", "met"), (0, 3))
    for goal in GPU_GOALS:
        verdict = judge(goal, {}, values if on_a_gpu else {})
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}{goal.unit}"
        found = values.get(goal.scalar or "", ())
        shown = f"{statistics.median(found):.4g}{goal.unit}" if found else "-"
        said = {"met": "yes", "missed": "**no**", "open": "not measured"}[verdict.status]
        yield row((goal.what, bound, shown, said if on_a_gpu else "not run on a GPU"))


def _steps(found: Found) -> Iterator[str]:
    floor = floor_seconds(found)
    speed = found["steps"].get("bandwidth", {}).get("bytes_a_second")
    if floor and speed:
        yield (
            f"Floor: {floor * speed / 1e9:.2f} GB of weights at {speed / 1e12:.3f} TB/s (a copy, "
            f"reading and writing counted) = {1e3 * floor:.2f} ms."
        )
        yield ""
    heads = ("case", "step, ms", "of it the graph, ms", "step over floor", "tokens/s", "fill, s")
    yield from table_head(heads)
    for name, cell in found["steps"].items():
        if "turns" not in cell:
            continue
        step, graphs = statistics.median(step_seconds(cell)), graph_seconds(cell)
        yield row(
            (
                name,
                f"{1e3 * step:.2f}",
                f"{1e3 * statistics.median(graphs):.2f}" if graphs else "-",
                f"{step / floor:.2f}" if floor else "-",
                f"{cell['requests'] / step:.0f}",
                "-" if cell["fill_seconds"] is None else f"{cell['fill_seconds']:.2f}",
            )
        )


def _prefills(found: Found) -> Iterator[str]:
    yield from table_head(("case", "tokens", "ms", "tokens/s"))
    for name, cell in found["prefill"].items():
        seconds = statistics.median(cell["seconds"])
        rate = cell["tokens"] / seconds
        yield row((name, f"{cell['tokens']}", f"{1e3 * seconds:.1f}", f"{rate:.0f}"))


def _profiles(found: Found) -> Iterator[str]:
    for name, cell in found["profile"].items():
        busy, gaps = cell["busy"] / cell["steps"], cell["gaps"] / cell["steps"]
        yield (
            f"{name}, a step: {cell['launches'] / cell['steps']:.0f} launches, {busy:.0f} us in "
            f"them, {gaps:.0f} us between them (longest {cell['longest_gap']:.0f})."
        )
        yield from ("", *table_head(("kernel", "launches a step", "us a step", "share")))
        for kernel in cell["kernels"]:
            times = [kernel["launches"] / cell["steps"], kernel["us"] / cell["steps"]]
            share = kernel["us"] / cell["busy"] if cell["busy"] else 0.0
            title = kernel["name"][:80].replace("|", "/")
            yield row((title, f"{times[0]:.1f}", f"{times[1]:.1f}", f"{100 * share:.1f} %"))
        yield ""


def _churn(found: Found) -> Iterator[str]:
    cell = found["churn"][CLOSED_LOOP]
    yield (
        f"{cell['arrivals']} adapters asked for the first time, {cell['loads']} loads, "
        f"{cell['evictions']} evictions, {cell['compiles']} kernels compiled and "
        f"{cell['captures']} graphs captured after the warm-up."
    )
    heads = ("round", "steps", "median, ms", "P99, ms", "longest, ms", "decodes' median, ms")
    yield from ("", *table_head(heads))
    for number, turn in enumerate(cell["turns"], 1):
        for name in ("steady", "arrivals"):
            told = turn[name]
            median = told["decode_median"]
            times = [f"{1e3 * told[key]:.2f}" for key in ("median", "p99", "longest")]
            decodes = "-" if median is None else f"{1e3 * median:.2f}"
            yield row((f"{number}, {name}", f"{told['steps']}", *times, decodes))


def _memory(found: Found) -> Iterator[str]:
    cell = found["memory"][START]
    yield from table_head(("part", "seconds"))
    for name, seconds in cell["seconds"].items():
        yield row((name, f"{seconds:.3f}"))
    yield from ("", *table_head(("memory", "GB")))
    for name, size in cell["bytes"].items():
        yield row((name, f"{size / 1e9:.3f}"))


def _peft(found: Found) -> Iterator[str]:
    for name, cell in found["peft"].items():
        step = statistics.median(cell["seconds"])
        rate = cell["requests"] / step
        yield f"`adapter_names`, {name}: {1e3 * step:.1f} ms a step, {rate:.0f} tokens/s."


def _tests(found: Found) -> Iterator[str]:
    for name, cell in found["tests"].items():
        yield f"* {name}: {cell['said']}"


def _missing(documents: Mapping[str, Any]) -> list[str]:
    """Cells that failed or were left out with the reason, and phases that have no file."""
    lines = [
        f"* {phase}, {name}: {cell['status']}: {cell['reason'].splitlines()[0]}"
        for phase, document in documents.items()
        for name, cell in document["cells"].items()
        if cell["status"] != "measured"
    ]
    absent = [name for name in PHASES if name not in documents]
    if absent:
        lines.append(f"* not run: {_listed(absent)}")
    return lines or ["Nothing."]


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names))
