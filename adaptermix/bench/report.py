"""Reports of benchmarks: samples become numbers, a file, a table and a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from adaptermix.bench.load import Round, Sample
from adaptermix.bench.rounds import Cell

PERCENTILES = (50, 90, 99)
METRICS: Mapping[str, Callable[[Sample], Sequence[float]]] = {
    "ttft": lambda sample: [sample.ttft],
    "inter_token": lambda sample: sample.gaps,
    "e2e": lambda sample: [sample.seconds],
}
NUMBERS = (
    "tokens/s",
    "range",
    "TTFT ms P50",
    "P90",
    "P99",
    "inter-token ms P50",
    "P90",
    "P99",
    "end to end s P50",
    "P90",
    "P99",
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of a hundred lie, linear between the two nearest ranks.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def summarize(rounds: Sequence[Round]) -> dict[str, Any]:
    """One cell: each number is taken per round, then the median of the rounds.

    Latencies are in seconds, throughput in output tokens per second with its range over the rounds.
    """
    rates = [turn.tokens_per_second for turn in rounds]
    samples = [sample for turn in rounds for sample in turn.samples]
    prompts = [sample.prompt_tokens for sample in samples]
    outputs = [sample.output_tokens for sample in samples]
    cell: dict[str, Any] = {
        "rounds": len(rounds),
        "requests_per_round": len(rounds[0].samples),
        "prompt_tokens": [min(prompts), max(prompts)],
        "output_tokens": [min(outputs), max(outputs)],
        "output_tokens_per_second": statistics.median(rates),
        "output_tokens_per_second_range": [min(rates), max(rates)],
        "output_tokens_per_second_rounds": rates,
    }
    for metric, values_of in METRICS.items():
        cell[f"{metric}_seconds"] = {
            f"p{percent}": statistics.median(_of_round(turn, values_of, percent) for turn in rounds)
            for percent in PERCENTILES
        }
    return cell


def goodput(
    rounds: Sequence[Round], slo_ttft: float | None, slo_itl: float | None
) -> dict[str, float]:
    """Requests that met the objectives, both in milliseconds: a second, and as a share of all.

    A request meets `slo_itl` with the mean time of its tokens after the first, as in Zhong et al.,
    "DistServe", OSDI 2024. Each is taken per round, then the median of the rounds.
    """

    def good(sample: Sample) -> bool:
        in_time = slo_ttft is None or 1e3 * sample.ttft <= slo_ttft
        return in_time and (slo_itl is None or 1e3 * sample.token_seconds <= slo_itl)

    counts = [sum(map(good, turn.samples)) for turn in rounds]
    pairs = list(zip(counts, rounds, strict=True))
    return {
        "requests_per_second": statistics.median(n / turn.seconds for n, turn in pairs),
        "share": statistics.median(n / len(turn.samples) for n, turn in pairs),
    }


def cell_of(
    title: str,
    cell: Cell,
    rounds: Sequence[Round],
    slo_ttft: float | None = None,
    slo_itl: float | None = None,
) -> dict[str, Any]:
    """One cell as written to JSON."""
    written = {
        "system": cell.system,
        "suite": cell.suite,
        "case": cell.case,
        "title": title,
        "clients": cell.load.clients,
        "rate": cell.load.rate,
        "load": cell.load.label,
        **summarize(rounds),
    }
    if slo_ttft is not None or slo_itl is not None:
        written["goodput"] = {
            "slo_ttft_ms": slo_ttft,
            "slo_itl_ms": slo_itl,
            **goodput(rounds, slo_ttft, slo_itl),
        }
    return written


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


def result_table(result: Mapping[str, Any]) -> Table:
    """The result for a terminal: one row a case and load."""
    table = Table(title=f"{result['model']} on {result['machine']['processor']}")
    table.add_column("case", no_wrap=True)
    for heading in ("load", "tokens/s", "range", "TTFT ms", "P99", "gap ms", "P99"):
        table.add_column(heading, justify="right")
    for cell in result["cells"]:
        values = numbers(cell)
        chosen = (values[0], values[1], values[2], values[4], values[5], values[7])
        table.add_row(cell["title"], cell["load"], *chosen)
    return table


def provenance(result: Mapping[str, Any]) -> str:
    """Machine, commit, date, format, threads and kernels, in one line."""
    machine, software = result["machine"], result["software"]
    serving = result.get("serving", {})
    parts = [
        result["model"],
        f"{machine['processor']}, {machine['cores']} cores",
        *([machine["gpu"]] if machine.get("gpu") else []),
        f"{serving.get('dtype') or 'dtype unknown'}",
        f"kernels {serving.get('kernels') or 'unknown'}",
        f"{serving.get('threads') or 'unknown'} threads",
        *([f"held down to {serving['isa']}"] if serving.get("isa") else []),
        f"commit {software['commit'][:10]}{' changed' if 'local' in software['commit'] else ''}",
        software["date"][:10],
    ]
    return " · ".join(parts)


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page: where it was measured, then every number."""
    kind = result["kind"]
    lines = [f"# `adaptermix bench {kind}`", "", provenance(result), ""]
    heads = ["case", "load", *NUMBERS]
    has_goodput = any("goodput" in cell for cell in result["cells"])
    if has_goodput:
        heads += ["goodput requests/s", "of all"]
    lines += table_head(heads, (0, 1))
    for cell in result["cells"]:
        values = numbers(cell)
        if has_goodput:
            good = cell["goodput"]
            values += [f"{good['requests_per_second']:.2f}", f"{100 * good['share']:.0f} %"]
        lines.append(row([cell["title"], cell["load"], *values]))
    first = result["cells"][0]
    lines += [
        "",
        f"Medians of {first['rounds']} rounds; the range is that of the rounds' throughputs. "
        "A load of `n` is n clients with one request in flight each, `n/s` a Poisson process.",
        "",
        *missing_lines(result.get("missing", {})),
    ]
    return "\n".join(lines)


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """Parts that a run left out, each with its reason."""
    return [f"- {name} is missing: {' '.join(why.split())}" for name, why in missing.items()]


def goal_table(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row a target: what was asked, what came out, and whether that is enough."""
    heads = ("what", "target", "measured", "over rounds", "")
    lines = table_head(heads, (0, 4))
    for verdict in goals:
        goal, value = verdict["goal"], verdict["value"]
        sign = "at least" if goal["at_least"] else "at most"
        shown, spread = "-", "-"
        if value is not None:
            shown = f"{value:.2f}{goal['unit']}"
            spread = f"{verdict['low']:.2f}-{verdict['high']:.2f}"
        status = f"**{verdict['status']}**" if verdict["status"] == "missed" else verdict["status"]
        note = f"{status}: {verdict['note']}" if verdict["note"] else status
        target = f"{sign} {goal['bound']:g}{goal['unit']}"
        lines.append(row([goal["what"], target, shown, spread, note]))
    return lines


def table_head(heads: Sequence[str], left: Collection[int] = (0,)) -> list[str]:
    """The two lines above the rows of a Markdown table; columns that are not `left` go right."""
    rule = ["---" if column in left else "--:" for column in range(len(heads))]
    return [row(heads), row(rule)]


def row(values: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(values)} |"


def _of_round(turn: Round, values_of: Callable[[Sample], Sequence[float]], percent: int) -> float:
    """0 where there is nothing to measure: answers that came in one piece have no gaps."""
    values = [value for sample in turn.samples for value in values_of(sample)]
    return percentile(values, percent) if values else 0.0


def numbers(cell: Mapping[str, Any]) -> list[str]:
    """A cell's numbers as text, in the order of `NUMBERS`."""
    low, high = cell["output_tokens_per_second_range"]
    ttft, gap, whole = (cell[f"{metric}_seconds"] for metric in METRICS)
    percents = [f"p{percent}" for percent in PERCENTILES]
    return [
        f"{cell['output_tokens_per_second']:.1f}",
        f"{low:.1f}-{high:.1f}",
        *(f"{1e3 * ttft[percent]:.0f}" for percent in percents),
        *(f"{1e3 * gap[percent]:.1f}" for percent in percents),
        *(f"{whole[percent]:.2f}" for percent in percents),
    ]
