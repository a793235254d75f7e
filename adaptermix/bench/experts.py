"""`adaptermix bench experts`: what each kind of expert costs a decode step, beside plain LoRA."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from adaptermix.bench.expert_adapters import (
    COPIES,
    HIDDEN,
    RANK,
    SIZE,
    Kind,
    equal_rank,
    num_parameters,
    write_expert_adapters,
)
from adaptermix.bench.machine import default_kernels, origin
from adaptermix.bench.offline import Offline, Sizes, offline
from adaptermix.bench.report import missing_lines, provenance, row, table_head
from adaptermix.bench.rounds import Turns
from adaptermix.bench.settings import ExpertSettings, ModelSettings
from adaptermix.bench.subject import Subject, resolve
from adaptermix.bench.verdicts import Goal, judge_value
from adaptermix.bench.workload import CaseMixture, Job, make_prompts

KINDS: tuple[Kind, ...] = ("lora", "soft", "sparse", "adamix", "serial")
BASE = "base"
CASES = (BASE, *KINDS)

Seconds = Mapping[str, Sequence[float]]  # of each case: the median step of every round


@dataclass(frozen=True, slots=True)
class ExpertTarget:
    """Tokens a second that a case must reach, as a share of those of another."""

    what: str
    case: str
    beside: str
    at_least: float

    def judge(self, seconds: Seconds) -> dict[str, Any]:
        """The target with its ratio and status, as written to JSON."""
        ratio = _ratio(seconds, self.case, self.beside)
        verdict = judge_value(Goal(self.what, self.at_least), ratio[0] if ratio else None)
        return {
            **asdict(self),
            "ratio": verdict.value,
            "ratio_range": ratio[1:] if ratio else None,
            "status": verdict.status,
        }


TARGETS = (
    ExpertTarget("soft MoA beside LoRA of equal parameters", "soft", "lora", 0.7),
    ExpertTarget("sparse MoA beside soft", "sparse", "soft", 0.95),
    # The rows of both are the same in number and place; what is left is the noise of the machine.
    ExpertTarget("AdaMix, merged, beside LoRA", "adamix", "lora", 0.97),
)


def run_experts(settings: ExpertSettings, model: ModelSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError for what cannot be."""
    subject = resolve(model.model)
    base, kernels = subject.base(), model.kernels or default_kernels()
    rank = equal_rank(base)
    parameters = {BASE: 0} | {kind: num_parameters(base, kind, rank) for kind in KINDS}
    names: dict[str, Kind] = {
        f"{kind}-{i}": kind for kind in KINDS for i in range(settings.adapters)
    }
    # Every case's prompts stay in the prefix cache, so that only the first round computes them.
    length = settings.context + 2 * settings.steps + settings.requests + 64
    tokens = len(CASES) * settings.requests * length
    sizes = Sizes(settings.requests, tokens)
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folders = write_expert_adapters(base, Path(temporary, "adapters"), names, rank)
        store = Path(temporary, "store")
        with offline(subject, folders, sizes, store, dtype=model.dtype, kernels=kernels) as system:
            system.load()
            seconds, missing = _measure(system, subject, settings)
            dtype = system.engine.info.dtype
    return {
        **origin(
            "experts",
            subject.name,
            {"dtype": dtype, "kernels": kernels, "threads": torch.get_num_threads()},
            asdict(settings),
        ),
        "rank": rank,
        "cells": [
            {
                "case": case,
                "title": _title(case, settings.adapters, rank),
                "parameters": parameters[case],
                "step_ms": 1e3 * statistics.median(seconds[case]),
                "step_ms_range": [1e3 * min(seconds[case]), 1e3 * max(seconds[case])],
                "tokens_per_second": settings.requests / statistics.median(seconds[case]),
                "beside_lora": _ratio(seconds, case, "lora"),
            }
            for case in seconds
        ],
        "targets": [target.judge(seconds) for target in TARGETS],
        "missing": missing,
    }


def _measure(
    system: Offline, subject: Subject, settings: ExpertSettings
) -> tuple[Seconds, dict[str, str]]:
    """All cases in turn, round after round, and which are missing, and why.

    The first round is not counted. Raises BenchmarkError where all cases fail.
    """
    jobs = {case: _jobs(case, subject, settings) for case in CASES}
    turns = Turns[str, float](CASES, str, Console(stderr=True))
    for number, case in turns.rounds(settings.rounds + 1, "decode steps"):
        with turns.turn(case) as seconds:
            steps = system.decode_steps(jobs[case], settings.steps)
            if number > 0:
                seconds.append(statistics.median(step.seconds for step in steps))
    turns.require_some()
    return turns.values, turns.missing


def _jobs(case: str, subject: Subject, settings: ExpertSettings) -> list[Job]:
    """Equal prompts in every case; each request under one adapter, the adapters in turn."""
    lengths = [settings.context] * settings.requests
    prompts = make_prompts(lengths, f"experts {settings.seed}", subject.count_tokens)
    own = [CaseMixture((f"{case}-{i}",), (1.0,)) for i in range(settings.adapters)]
    mixtures = [CaseMixture()] if case == BASE else own
    return [Job(text, 0, mixtures[i % len(mixtures)]) for i, text in enumerate(prompts)]


def _ratio(seconds: Seconds, case: str, beside: str) -> tuple[float, float, float] | None:
    """Tokens a second of a case over those of another, round by round: median, least, most.

    None where one of them is missing.
    """
    if case not in seconds or beside not in seconds:
        return None
    ratios = [b / a for a, b in zip(seconds[case], seconds[beside], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def _title(case: str, adapters: int, rank: int) -> str:
    mixture = f"LoRA of rank {RANK}, parallel bottleneck of {SIZE}, router of {HIDDEN}"
    return {
        BASE: "base model",
        "lora": f"{adapters} LoRA of rank {rank}",
        "soft": f"{adapters} soft MoA: {mixture}",
        "sparse": f"{adapters} sparse MoA: {mixture}",
        "adamix": f"{adapters} AdaMix LoRA of rank {rank}, {COPIES} copies merged",
        "serial": f"{adapters} serial bottlenecks of {SIZE}",
    }[case]


_HEADS = ("requests over", "parameters", "step ms", "range", "tokens/s", "beside LoRA", "range")


def _cells(cell: Mapping[str, Any]) -> list[str]:
    low, high = cell["step_ms_range"]
    return [
        cell["title"],
        f"{cell['parameters'] / 1e6:.2f} M",
        f"{cell['step_ms']:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{cell['tokens_per_second']:.0f}",
        *_ratio_cells(cell["beside_lora"]),
    ]


def _ratio_cells(ratio: Sequence[float] | None) -> tuple[str, str]:
    if ratio is None:
        return "-", "-"
    return f"{ratio[0]:.3f}", f"{ratio[1]:.3f}-{ratio[2]:.3f}"


def result_table(result: Mapping[str, Any]) -> Table:
    """The result for a terminal."""
    table = Table(*_HEADS)
    for cell in result["cells"]:
        table.add_row(*_cells(cell))
    return table


def expert_lines(result: Mapping[str, Any]) -> list[str]:
    """Every case, then every target, as Markdown tables."""
    lines = table_head(_HEADS)
    lines += [row(_cells(cell)) for cell in result["cells"]]
    heads = ("target", "at least", "measured", "range", "")
    lines += ["", *table_head(heads, (0, 4))]
    for target in result["targets"]:
        ratio = target["ratio"]
        measured = _ratio_cells(ratio if ratio is None else (ratio, *target["ratio_range"]))
        least = f"{target['at_least']:.2f}"
        lines.append(row([target["what"], least, *measured, target["status"]]))
    return [*lines, "", *missing_lines(result.get("missing", {}))]


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    settings = result["settings"]
    told = (
        f"Decode steps of {settings['requests']} requests at a context of {settings['context']}; "
        f"medians of {settings['rounds']} rounds, all cases in turn. `beside LoRA` is tokens a "
        "second over those of plain LoRA, round by round."
    )
    head = ["# `adaptermix bench experts`", "", provenance(result), "", told, ""]
    return "\n".join([*head, *expert_lines(result), ""])
