"""Fills `docs/performance.md` with the figures of `benchmarks/results/`; `make docs` calls it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptermix.bench.contention.report import share_table
from adaptermix.bench.engine import points_table
from adaptermix.bench.experts import expert_lines
from adaptermix.bench.isa.report import expectations, peak_table, step_table
from adaptermix.bench.kernels import product_table
from adaptermix.bench.peers.report import goal_table
from adaptermix.bench.products import best_us
from adaptermix.bench.quantization import nll_lines, step_lines
from adaptermix.bench.report import numbers, provenance, row
from adaptermix.bench.routing.report import figures as routing_figures

Result = Mapping[str, Any]
_MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


Write = Callable[[Result], list[str]]
Figures = Mapping[str, tuple[str, str, Write]]  # {mark: (result, command that makes it, writer)}


def filled(page: str, results: Path, pictures: str) -> str:
    """The page on performance with its figures: see `fill`."""
    return fill(page, results, pictures, FIGURES, _PICTURED)


def filled_readme(page: str, results: Path, pictures: str) -> str:
    """The project's first page with what to expect of a processor."""
    return fill(page, results, pictures, _README, {})


def fill(
    page: str, results: Path, pictures: str, figures: Figures, pictured: Mapping[str, str]
) -> str:
    """The page with each `figures` mark filled from `results/<file>.json`.

    `pictures` is the way from the page to `results`, `pictured` names what has a picture. What has
    not been measured says so, with the command that measures it. Raises KeyError for a mark that
    is not in `figures`.
    """

    def one(match: re.Match[str]) -> str:
        name, command, write = figures[match[2]]
        source = results / f"{name}.json"
        if not source.exists():
            return f"{match[1]}Not measured yet: `{command}`.\n{match[3]}"
        lines = write(json.loads(source.read_text(encoding="utf-8")))
        if match[2] in pictured and (results / f"{name}.png").exists():
            lines += ["", f"![{pictured[match[2]]}]({pictures}/{name}.png)"]
        return "\n".join([match[1].rstrip("\n"), *lines, match[3]])

    return _MARK.sub(one, page)


def _machine(result: Result) -> list[str]:
    speed = result["bytes_per_second"] / 1e9
    rates = [line["flops"] / best_us(line) / 1e3 for line in result["products"]]
    most = max(line["rows"] for line in result["products"])
    text = (
        f"`M`: memory reads at {speed:.1f} GB/s with all threads. `F`: {max(rates):.0f} GFLOP/s in "
        f"the fastest product below, of up to {most} rows."
    )
    return [provenance(result), "", text]


def _products(result: Result) -> list[str]:
    lines = product_table(result)
    lines += ["", row(("kernel", "rows", "us")), row(("---", "--:", "--:"))]
    lines += [row((o["kernel"], str(o["rows"]), f"{o['us']:.0f}")) for o in result["others"]]
    return lines


def _phases(result: Result) -> list[str]:
    heads = ("case", "requests", "step ms", "in the model", "around it", "tokens/s")
    lines = [provenance(result), "", row(heads), row(["---", *["--:"] * 5])]
    for cell in result["cells"]:
        step = cell["decode_step"]
        times = [f"{step[name]:.2f}" for name in ("step_ms", "model_ms", "around_ms")]
        rate = f"{cell['output_tokens_per_second']:.1f}"
        lines.append(row([cell["title"], cell["load"], *times, rate]))
    return lines


def _curves(result: Result) -> list[str]:
    return [provenance(result), "", *points_table(result["points"])]


def _serving(result: Result) -> list[str]:
    heads = (
        *("case", "load", "tokens/s", "range", "TTFT ms P50", "P90", "P99"),
        *("inter-token ms P50", "P90", "P99"),
    )
    lines = [provenance(result), "", row(heads), row(["---", "---", *["--:"] * 8])]
    lines += [row([c["title"], c["load"], *numbers(c)[:8]]) for c in result["cells"]]
    return lines


def _targets(result: Result) -> list[str]:
    return [provenance(result), "", *goal_table(result["goals"])]


def _quantization(result: Result) -> list[str]:
    return [provenance(result), "", *step_lines(result), "", *nll_lines(result)]


def _experts(result: Result) -> list[str]:
    return [provenance(result), "", *expert_lines(result)]


def _contention(result: Result) -> list[str]:
    return [provenance(result), "", *goal_table(result["goals"]), "", *share_table(result["cells"])]


def _isas(result: Result) -> list[str]:
    lines = [provenance(result), "", *goal_table(result["goals"]), "", *step_table(result)]
    return [*lines, "", *peak_table(result)]


def _expected(result: Result) -> list[str]:
    return [provenance(result), "", *expectations(result)]


_README: Figures = {"expected": ("isa", "adaptermix bench isa", _expected)}
FIGURES: Figures = {
    "machine": ("kernels", "adaptermix bench kernels", _machine),
    "products": ("kernels", "adaptermix bench kernels", _products),
    "phases": ("engine", "adaptermix bench engine", _phases),
    "curves": ("curves", "make bench-figures", _curves),
    "serving": ("serve", "adaptermix bench serve", _serving),
    "quantization": ("quantization", "adaptermix bench quantization --data data", _quantization),
    "routing": ("routing", "adaptermix bench routing --data data", routing_figures),
    "experts": ("experts", "adaptermix bench experts", _experts),
    "targets": ("peers", "make bench-peers", _targets),
    "isas": ("isa", "adaptermix bench isa", _isas),
    "avx2": ("peers-avx2", "adaptermix bench peers --isa avx2 --out OUT", _targets),
    "contention": ("contention", "adaptermix bench contention", _contention),
}
_PICTURED = {
    "products": "Microseconds of each product",
    "curves": "Step time against requests, context, adapters, mixture size and rank",
    "serving": "Throughput and latency over HTTP",
    "routing": "Step time of each router over that of fixed weights",
    "targets": "Output tokens a second beside the peers",
}
