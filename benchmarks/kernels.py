"""`adaptermix bench kernels`: microseconds of each kernel on the model's shapes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from torch.nn import functional

from benchmarks.bandwidth import read_bandwidth
from benchmarks.errors import BenchmarkError
from benchmarks.machine import describe_machine, describe_software
from benchmarks.report import provenance, row
from benchmarks.settings import KernelSettings, ModelSettings
from benchmarks.subject import Subject, resolve
from router_engine.config import KernelConfig
from router_engine.kernels.cpu.build import KernelBuildError, build
from router_engine.kernels.cpu.library import Library
from router_engine.kernels.reference.low_rank import mix_sum
from router_engine.model.sampler import Sampler, SamplingRow
from router_engine.request import SamplingParams

RANK_ROWS = 64  # eight adapters of rank 8
Shape = tuple[int, int]  # outputs, inputs
Jobs = Mapping[str, Callable[[], object]]


def run_kernels(kernels: KernelSettings, model: ModelSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError where nothing compiles."""
    subject = resolve(model.model)
    try:
        library = Library(build(KernelConfig().cache))
    except KernelBuildError as error:
        raise BenchmarkError(f"the C++ kernels cannot be built: {error}") from error
    speed = read_bandwidth(rounds=5)
    return {
        "kind": "kernels",
        "model": subject.name,
        "machine": describe_machine(),
        "software": describe_software(),
        "serving": {
            "dtype": "bfloat16",
            "kernels": "cpu and reference",
            "threads": torch.get_num_threads(),
        },
        "settings": asdict(kernels),
        "bytes_per_second": speed,
        "products": [
            line
            for rows in kernels.rows
            for line in products(library, shapes(subject), rows, kernels.rounds, speed)
        ],
        "others": [line for rows in kernels.rows for line in others(subject, rows, kernels.rounds)],
    }


def shapes(subject: Subject) -> dict[str, tuple[Shape, int]]:
    """Name -> (shape, how many a step has) of the products of a Llama, fused where it can be."""
    config = subject.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * width
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    found = {
        "q, k, v": ((heads, hidden), layers),
        "o": ((hidden, config.num_attention_heads * width), layers),
        "gate, up": ((2 * wide, hidden), layers),
        "down": ((hidden, wide), layers),
        "lm_head": ((config.vocab_size, hidden), 1),
    }
    return {f"{name} {i} -> {o}": ((o, i), n) for name, ((o, i), n) in found.items()}


def measure(jobs: Jobs, rounds: int) -> dict[str, float]:
    """Median seconds of each job; all in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def products(
    library: Library,
    found: Mapping[str, tuple[Shape, int]],
    rows: int,
    rounds: int,
    speed: float,
) -> list[dict[str, Any]]:
    """Each product, over as many distinct weights as the model has: none stays in a cache."""
    lines = []
    for name, ((outputs, inputs), count) in found.items():
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(count)]
        packed = _packed(library, weights)
        x = torch.randn(rows, inputs).bfloat16()
        seconds = measure(_pair(library, x, weights, packed), rounds)
        lines.append(
            {
                "product": name,
                "rows": rows,
                "count": count,
                "cpu_us": 1e6 * seconds["cpu"] / count,
                "reference_us": 1e6 * seconds["reference"] / count,
                "flops": 2 * rows * outputs * inputs,
                "floor_us": 1e6 * outputs * inputs * 2 / speed,
            }
        )
    return lines


def _packed(library: Library, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """As the decoder holds them: one block in large pages."""
    size = library.packed_size(weights[0].shape, torch.bfloat16)
    block = torch.empty(len(weights), size, dtype=torch.bfloat16)
    library.large_pages(block)
    for weight, place in zip(weights, block, strict=True):
        library.pack(weight, place)
    return list(block)


def _pair(
    library: Library, x: torch.Tensor, weights: list[torch.Tensor], packed: list[torch.Tensor]
) -> Jobs:
    def cpu() -> None:
        library.linears(x, packed, weights[0].shape[0])

    def reference() -> None:
        for weight in weights:
            functional.linear(x, weight)

    return {"cpu": cpu, "reference": reference}


def others(subject: Subject, rows: int, rounds: int) -> list[dict[str, Any]]:
    """What has one implementation: the reference mixture of one square linear, greedy sampling."""
    hidden = subject.config.hidden_size
    x, y = torch.randn(rows, hidden).bfloat16(), torch.zeros(rows, hidden).bfloat16()
    a, b = (torch.randn(RANK_ROWS, hidden).bfloat16() for _ in range(2))
    weights = torch.rand(rows, RANK_ROWS)
    logits = torch.randn(rows, subject.config.vocab_size)
    sampler = Sampler()
    sampled = [SamplingRow(params=SamplingParams()) for _ in range(rows)]
    jobs: Jobs = {
        f"mixture, reference, {RANK_ROWS} rank rows, {hidden} -> {hidden}": lambda: mix_sum(
            y, x, a, b, weights
        ),
        "greedy sampling": lambda: sampler.sample(logits, sampled),
    }
    seconds = measure(jobs, rounds)
    return [{"kernel": name, "rows": rows, "us": 1e6 * s} for name, s in seconds.items()]


_HEADS = ("product", "rows", "cpu us", "reference us", "floor us", "cpu / floor")


def _cells(line: Mapping[str, Any]) -> list[str]:
    return [
        line["product"],
        str(line["rows"]),
        f"{line['cpu_us']:.0f}",
        f"{line['reference_us']:.0f}",
        f"{line['floor_us']:.0f}",
        f"{line['cpu_us'] / line['floor_us']:.2f}",
    ]


def result_table(result: Mapping[str, Any]) -> Table:
    """The products for a terminal."""
    speed = result["bytes_per_second"] / 1e9
    table = Table(*_HEADS, title=f"memory reads at {speed:.1f} GB/s")
    for line in result["products"]:
        table.add_row(*_cells(line))
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    speed = result["bytes_per_second"] / 1e9
    lines = ["# `adaptermix bench kernels`", "", provenance(result), ""]
    lines += [f"Memory reads at {speed:.1f} GB/s; the floor is a weight's bytes over that.", ""]
    lines += [row(_HEADS), row(["---", *["--:"] * 5])]
    lines += [row(_cells(line)) for line in result["products"]]
    lines += ["", row(("kernel", "rows", "us")), row(("---", "--:", "--:"))]
    lines += [
        row((line["kernel"], str(line["rows"]), f"{line['us']:.0f}")) for line in result["others"]
    ]
    return "\n".join([*lines, ""])
