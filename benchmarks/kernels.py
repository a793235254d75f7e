"""`adaptermix bench kernels`: microseconds of each kernel on the model's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from benchmarks.bandwidth import read_bandwidth
from benchmarks.errors import BenchmarkError
from benchmarks.machine import describe_machine, describe_software
from benchmarks.products import CONTENDERS, CPU, INDUCTOR, INT8, measure, products, shapes
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


def run_kernels(kernels: KernelSettings, model: ModelSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError where nothing compiles."""
    subject = resolve(model.model)
    try:
        library = Library(build(KernelConfig().cache))
    except KernelBuildError as error:
        raise BenchmarkError(f"the C++ kernels cannot be built: {error}") from error
    speed = read_bandwidth(rounds=5)
    contenders = (*CONTENDERS, INT8, *([INDUCTOR] if kernels.inductor else []))
    found = shapes(subject)
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
            for line in products(library, found, rows, kernels.rounds, speed, contenders)
        ],
        "others": [line for rows in kernels.rows for line in others(subject, rows, kernels.rounds)],
    }


def others(subject: Subject, rows: int, rounds: int) -> list[dict[str, Any]]:
    """What has one implementation: the reference mixture of one square linear, greedy sampling."""
    hidden = subject.config.hidden_size
    x, y = torch.randn(rows, hidden).bfloat16(), torch.zeros(rows, hidden).bfloat16()
    a, b = (torch.randn(RANK_ROWS, hidden).bfloat16() for _ in range(2))
    weights = torch.rand(rows, RANK_ROWS)
    logits = torch.randn(rows, subject.config.vocab_size)
    sampler = Sampler()
    sampled = [SamplingRow(params=SamplingParams()) for _ in range(rows)]
    jobs = {
        f"mixture, reference, {RANK_ROWS} rank rows, {hidden} -> {hidden}": lambda: mix_sum(
            y, x, a, b, weights
        ),
        "greedy sampling": lambda: sampler.sample(logits, sampled),
    }
    seconds = measure(jobs, rounds)
    return [{"kernel": name, "rows": rows, "us": 1e6 * s} for name, s in seconds.items()]


def heads(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the table of products."""
    contenders = result["products"][0]["us"]
    return ("product", "rows", "floor us", *(f"{one} us" for one in contenders), "cpu / floor")


def cells(line: Mapping[str, Any]) -> list[str]:
    """A product's row under `heads`."""
    times = [line["floor_us"], *line["us"].values()]
    ratio = f"{line['us'][CPU] / line['floor_us']:.2f}"
    return [line["product"], str(line["rows"]), *(f"{us:.0f}" for us in times), ratio]


def product_table(result: Mapping[str, Any]) -> list[str]:
    """The products in Markdown."""
    titles = heads(result)
    lines = [row(titles), row(["---", *["--:"] * (len(titles) - 1)])]
    return lines + [row(cells(line)) for line in result["products"]]


def result_table(result: Mapping[str, Any]) -> Table:
    """The products for a terminal."""
    speed = result["bytes_per_second"] / 1e9
    table = Table(*heads(result), title=f"memory reads at {speed:.1f} GB/s")
    for line in result["products"]:
        table.add_row(*cells(line))
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    speed = result["bytes_per_second"] / 1e9
    lines = ["# `adaptermix bench kernels`", "", provenance(result), ""]
    lines += [f"Memory reads at {speed:.1f} GB/s; the floor is a weight's bytes over that.", ""]
    lines += product_table(result)
    lines += ["", row(("kernel", "rows", "us")), row(("---", "--:", "--:"))]
    lines += [
        row((line["kernel"], str(line["rows"]), f"{line['us']:.0f}")) for line in result["others"]
    ]
    return "\n".join([*lines, ""])
