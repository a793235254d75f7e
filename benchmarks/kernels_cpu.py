"""`python -m benchmarks.kernels_cpu`: a step of the C++ decoder, its products, and their floor.

Everything that is compared is measured in turn, round after round, so that a slow minute of the
machine falls on all alike; medians are reported.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from benchmarks.machine import describe_machine, describe_software
from benchmarks.process import default_model
from benchmarks.step_cpu import CASES, CONTEXT, StepBench
from router_engine.config import KernelConfig
from router_engine.kernels.cpu.build import build
from router_engine.kernels.cpu.library import Library
from router_engine.model.quantized import Int8Linear

LAYERS = 30  # of SmolLM2-135M; the head is there once
SHAPES = {
    "qkv 576 -> 960": (960, 576, LAYERS),
    "o 576 -> 576": (576, 576, LAYERS),
    "gate, up 576 -> 3072": (3072, 576, LAYERS),
    "down 1536 -> 576": (576, 1536, LAYERS),
    "lm_head 576 -> 49152": (49152, 576, 1),
}
REFERENCE = "base, reference"
INT8 = "base, int8"
_READ_BYTES = 1 << 28

app = typer.Typer(add_completion=False)


def measure(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; all jobs in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def bandwidth(library: Library, rounds: int) -> float:
    """Bytes a second of reading memory with every thread, the best of the rounds."""
    memory = torch.ones(_READ_BYTES, dtype=torch.uint8)
    library.large_pages(memory)
    best = float("inf")
    for _ in range(rounds + 1):
        started = time.perf_counter()
        library.read(memory)
        best = min(best, time.perf_counter() - started)
    return _READ_BYTES / best


def products(library: Library, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Each product of a step, over as many distinct weights as the model has.

    ours: bf16, int8: 8-bit weights with the rounding of x, torch: `F.linear`.
    """
    results = []
    for name, (outputs, inputs, count) in SHAPES.items():
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(count)]
        layers = [Int8Linear(weight, None) for weight in weights]
        packed = _pack(library, [(weight, None) for weight in weights])
        packed_int8 = _pack(library, [(layer.values, layer.scale) for layer in layers])
        x = torch.randn(rows, inputs).bfloat16()

        jobs: dict[str, Callable[[], object]] = {
            "ours": partial(library.linears, x, packed, outputs),
            "int8": partial(library.linears, x, packed_int8, outputs),
            "torch": partial(_torchs, x, weights),
        }
        seconds = measure(jobs, rounds)
        results.append(
            {
                "product": name,
                "rows": rows,
                "layers": count,
                "bytes": count * outputs * inputs * 2,
                **{f"{who}_us": second / count * 1e6 for who, second in seconds.items()},
            }
        )
    return results


def _pack(
    library: Library, weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
) -> list[torch.Tensor]:
    """As the decoder holds them: one block in large pages."""
    first = weights[0][0]
    size = library.packed_size(first.shape, first.dtype)
    block = torch.empty(len(weights), size, dtype=first.dtype)
    library.large_pages(block)
    for (weight, scale), place in zip(weights, block, strict=True):
        library.pack(weight, place, scale)
    return list(block)


def _torchs(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
    for weight in weights:
        functional.linear(x, weight)


def steps(
    fast: StepBench, int8: StepBench, reference: StepBench, rows: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of a decode step by case, and of the others' base step."""
    seconds: dict[str, list[float]] = {case: [] for case in (*CASES, INT8, REFERENCE)}
    for _ in range(rounds):
        for case in CASES:
            seconds[case] += fast.decode_seconds(case, rows)
        seconds[INT8] += int8.decode_seconds("base", rows)
    for _ in range(max(1, rounds // 4)):
        seconds[REFERENCE] += reference.decode_seconds("base", rows)
    return {case: statistics.median(times) * 1e3 for case, times in seconds.items()}


@app.command()
def main(
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows of a step; repeatable. 1, 8 and 32.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores when left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Products and whole steps of SmolLM2-135M in bf16, context 128."""
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    library = Library(build(KernelConfig().cache))
    speed = bandwidth(library, rounds)
    model, heights = default_model(), tuple(rows or (1, 8, 32))
    with tempfile.TemporaryDirectory() as folder:
        fast = StepBench(model, "cpu", Path(folder, "fast"))
        int8 = StepBench(model, "cpu", Path(folder, "int8"), "int8")
        reference = StepBench(model, "reference", Path(folder, "reference"))
        milliseconds = {n: steps(fast, int8, reference, n, max(1, rounds // 4)) for n in heights}
        weight_bytes = fast.weight_bytes
        for bench in (fast, int8, reference):
            bench.close()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "software": describe_software(),
        "threads": torch.get_num_threads(),
        "context": CONTEXT,
        "read_bytes_per_second": speed,
        "floor_ms": weight_bytes / speed * 1e3,
        "products": [line for n in heights for line in products(library, n, rounds)],
        "steps_ms": milliseconds,
    }
    for height in heights:
        _show(console, result, height)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


def _show(console: Console, result: dict[str, Any], height: int) -> None:
    lines = [line for line in result["products"] if line["rows"] == height]
    table = Table("product", "ours us", "int8 us", "F.linear us", "GB/s", title=f"{height} rows")
    for line in lines:
        rate = line["bytes"] / line["layers"] / line["ours_us"] / 1e3
        numbers = [f"{line[f'{who}_us']:.0f}" for who in ("ours", "int8", "torch")]
        table.add_row(line["product"], *numbers, f"{rate:.0f}")
    console.print(table)
    best = sum(line["layers"] * min(line["ours_us"], line["torch_us"]) for line in lines) / 1e3
    step = result["steps_ms"][height]
    table = Table("step", "ms", "of base", title=f"{height} rows, context {CONTEXT}")
    for case, milliseconds in step.items():
        table.add_row(case, f"{milliseconds:.1f}", f"{milliseconds / step['base']:.2f}")
    console.print(table)
    console.print(
        f"weights over {result['read_bytes_per_second'] / 1e9:.0f} GB/s: "
        f"{result['floor_ms']:.1f} ms; best products: {best:.1f} ms; "
        f"base step / best products: {step['base'] / best:.2f}"
    )


if __name__ == "__main__":
    app()
