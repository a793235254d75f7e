"""The figures of the pages, written from `benchmarks/results/`; `make docs` fills them in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptermix.bench.contention import share_table
from adaptermix.bench.engine import points_table
from adaptermix.bench.experts import expert_lines
from adaptermix.bench.isa import expectations, peak_table, step_table
from adaptermix.bench.kernels import best_us, product_table
from adaptermix.bench.quantization import nll_lines, step_lines
from adaptermix.bench.report import goal_table, numbers, provenance, row, table_head
from adaptermix.bench.routing.report import figures as routing_figures
from adaptermix.bench.soak import report as soak
from adaptermix.evaluation.routing import report as evaluation
from adaptermix.evaluation.uncertainty import report as uncertainty

Result = Mapping[str, Any]
_MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)

Write = Callable[[Result], list[str]]


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one page."""

    # {mark: (name of the result, command that makes it, writer of lines)}
    writers: Mapping[str, tuple[str, str, Write]]
    pictured: Mapping[str, str] = field(default_factory=dict)  # {mark: what the picture shows}

    def fill(self, page: str, results: Path, pictures: str) -> str:
        """The page with each `figures` mark filled from `results/<name>.json`.

        `pictures` is the way from the page to `results`. A result that is not there says so, with
        the command that makes it. Raises KeyError for a mark without a writer.
        """

        def one(match: re.Match[str]) -> str:
            name, command, write = self.writers[match[2]]
            source = results / f"{name}.json"
            if not source.exists():
                return f"{match[1]}Not measured yet: `{command}`.\n{match[3]}"
            lines = write(json.loads(source.read_text(encoding="utf-8")))
            if match[2] in self.pictured and (results / f"{name}.png").exists():
                lines += ["", f"![{self.pictured[match[2]]}]({pictures}/{name}.png)"]
            return "\n".join([match[1].rstrip("\n"), *lines, match[3]])

        return _MARK.sub(one, page)


def _with_origin(write: Write) -> Write:
    """The writer, with machine, commit and date above what it writes."""
    return lambda result: [provenance(result), "", *write(result)]


def _machine(result: Result) -> list[str]:
    speed = result["bytes_per_second"] / 1e9
    rates = [line["flops"] / best_us(line) / 1e3 for line in result["products"]]
    most = max(line["rows"] for line in result["products"])
    text = (
        f"`M`: memory reads at {speed:.1f} GB/s with all threads. `F`: {max(rates):.0f} GFLOP/s in "
        f"the fastest product below, of up to {most} rows."
    )
    return [text]


def _products(result: Result) -> list[str]:
    lines = product_table(result)
    lines += ["", *table_head(("kernel", "rows", "us"))]
    lines += [row((o["kernel"], str(o["rows"]), f"{o['us']:.0f}")) for o in result["others"]]
    return lines


def _phases(result: Result) -> list[str]:
    heads = ("case", "requests", "step ms", "in the model", "around it", "tokens/s")
    lines = table_head(heads)
    for cell in result["cells"]:
        step = cell["decode_step"]
        times = [f"{step[name]:.2f}" for name in ("step_ms", "model_ms", "around_ms")]
        rate = f"{cell['output_tokens_per_second']:.1f}"
        lines.append(row([cell["title"], cell["load"], *times, rate]))
    return lines


def _curves(result: Result) -> list[str]:
    return points_table(result["points"])


def _serving(result: Result) -> list[str]:
    heads = (
        *("case", "load", "tokens/s", "range", "TTFT ms P50", "P90", "P99"),
        *("inter-token ms P50", "P90", "P99"),
    )
    lines = table_head(heads, (0, 1))
    lines += [row([c["title"], c["load"], *numbers(c)[:8]]) for c in result["cells"]]
    return lines


def _targets(result: Result) -> list[str]:
    return goal_table(result["goals"])


def _quantization(result: Result) -> list[str]:
    return [*step_lines(result), "", *nll_lines(result)]


def _contention(result: Result) -> list[str]:
    return [*goal_table(result["goals"]), "", *share_table(result["cells"])]


def _isas(result: Result) -> list[str]:
    return [*goal_table(result["goals"]), "", *step_table(result), "", *peak_table(result)]


README = Figures({"expected": ("isa", "adaptermix bench isa", _with_origin(expectations))})
PERFORMANCE = Figures(
    {
        "machine": ("kernels", "adaptermix bench kernels", _with_origin(_machine)),
        "products": ("kernels", "adaptermix bench kernels", _products),
        "phases": ("engine", "adaptermix bench engine", _with_origin(_phases)),
        "curves": ("curves", "make bench-figures", _with_origin(_curves)),
        "serving": ("serve", "adaptermix bench serve", _with_origin(_serving)),
        "quantization": (
            "quantization",
            "adaptermix bench quantization --data data",
            _with_origin(_quantization),
        ),
        "routing": ("routing", "adaptermix bench routing --data data", routing_figures),
        "experts": ("experts", "adaptermix bench experts", _with_origin(expert_lines)),
        "targets": ("peers", "make bench-peers", _with_origin(_targets)),
        "isas": ("isa", "adaptermix bench isa", _with_origin(_isas)),
        "avx2": (
            "peers-avx2",
            "adaptermix bench peers --isa avx2 --out OUT",
            _with_origin(_targets),
        ),
        "contention": ("contention", "adaptermix bench contention", _with_origin(_contention)),
    },
    {
        "products": "Microseconds of each product",
        "curves": "Step time against requests, context, adapters, mixture size and rank",
        "serving": "Throughput and latency over HTTP",
        "routing": "Step time of each router over that of fixed weights",
        "targets": "Output tokens a second beside the peers",
    },
)

_RUN, _TUNE = "adaptermix eval --data data", "adaptermix eval --tune --data data"
EVALUATION = Figures(
    {
        "verdicts": ("evaluation", _RUN, _with_origin(evaluation.verdicts)),
        "likelihoods": ("evaluation", _RUN, evaluation.table),
        "differences": ("evaluation", _RUN, evaluation.differences),
        "scores": ("evaluation", _RUN, evaluation.scores),
        "mixed": ("evaluation", _RUN, evaluation.mixed),
        "opening": ("evaluation", _RUN, evaluation.opening),
        "leaks": ("evaluation", _RUN, evaluation.leaks),
        "mixtures": ("evaluation", _RUN, evaluation.bodies),
        "tuning": ("tuned", _TUNE, _with_origin(evaluation.tuning)),
    },
    {"likelihoods": "NLL of each task and routing, and quality against tokens a second"},
)

_SOAK = "adaptermix bench soak"
RELIABILITY = Figures(
    {
        "soak": ("soak", _SOAK, lambda result: [*soak.origin(result), "", *soak.promises(result)]),
        "soak_counts": ("soak", _SOAK, soak.counts),
    }
)

_STUDY = "adaptermix bench uncertainty --data data --adapter runs/adamix"
UNCERTAINTY = Figures(
    {
        "origin": ("uncertainty", _STUDY, uncertainty.origin),
        "answers": ("uncertainty", _STUDY, uncertainty.answers),
        "wrong": ("uncertainty", _STUDY, uncertainty.wrong),
        "unfamiliar": ("uncertainty", _STUDY, uncertainty.unfamiliar),
    },
    {"answers": "Reliability of the average and of the ensemble"},
)
