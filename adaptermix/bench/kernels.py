"""`adaptermix bench kernels`: microseconds of each kernel on the model's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from adaptermix.bench.bandwidth import read_bandwidth
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import describe_machine, describe_software
from adaptermix.bench.products import (
    CONTENDERS,
    CPU,
    INDUCTOR,
    INT8,
    left_out,
    measure,
    products,
    shapes,
)
from adaptermix.bench.report import provenance, row
from adaptermix.bench.settings import KernelSettings, ModelSettings
from adaptermix.bench.subject import Subject, resolve
from router_engine.backends.cpu.build import KernelBuildError, build
from router_engine.backends.cpu.library import Library
from router_engine.config import KernelConfig
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
    lines = [
        line
        for rows in kernels.rows
        for line in products(library, found, rows, kernels.rounds, speed, contenders)
    ]
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
        "products": lines,
        "missing": left_out(lines),
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
    names = (f"{one} us" for one in measured(result))
    return ("product", "rows", "floor us", *names, "cpu / floor")


def measured(result: Mapping[str, Any]) -> list[str]:
    """Contenders that have computed some product."""
    return list(dict.fromkeys(one for line in result["products"] for one in line["us"]))


def cells(line: Mapping[str, Any], contenders: Sequence[str]) -> list[str]:
    """A product's row under `heads`; a dash where a contender is left out."""
    us, floor = line["us"], line["floor_us"]
    times = [f"{us[one]:.0f}" if one in us else "-" for one in contenders]
    ratio = f"{us[CPU] / floor:.2f}" if CPU in us else "-"
    return [line["product"], str(line["rows"]), f"{floor:.0f}", *times, ratio]


def product_table(result: Mapping[str, Any]) -> list[str]:
    """The products in Markdown."""
    titles = heads(result)
    lines = [row(titles), row(["---", *["--:"] * (len(titles) - 1)])]
    lines += [row(cells(line, measured(result))) for line in result["products"]]
    reasons = result.get("missing", {}).items()
    return lines + [line for one, why in reasons for line in ("", f"{one} is left out: {why}")]


def result_table(result: Mapping[str, Any]) -> Table:
    """The products for a terminal."""
    speed = result["bytes_per_second"] / 1e9
    table = Table(*heads(result), title=f"memory reads at {speed:.1f} GB/s")
    for line in result["products"]:
        table.add_row(*cells(line, measured(result)))
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
