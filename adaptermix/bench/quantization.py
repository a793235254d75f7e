"""`adaptermix bench quantization`: what 8-bit weights cost in NLL, and what a step gains."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin
from adaptermix.bench.offline import Sizes, offline
from adaptermix.bench.report import missing_lines, provenance, row, table_head
from adaptermix.bench.rounds import Turns, attempt
from adaptermix.bench.settings import ModelSettings, QuantizationSettings
from adaptermix.bench.subject import Subject, resolve, write_adapters
from adaptermix.bench.workload import CaseMixture, Job, make_prompts
from router_engine.config import TINY_RANDOM, Quantization

QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8")
DTYPE: Literal["bfloat16"] = "bfloat16"
_CASES = ("base", "eight adapters")
_NUM_ADAPTERS = 8  # of rank 8, on q, k, v, o
_CONTEXT = 128  # tokens of every prompt
_STEPS = 16  # timed steps of one turn

_Part = tuple[str, int, Quantization]  # case, requests, its weights
CompareNll = Callable[[Subject], list[dict[str, Any]]]


def run_quantization(
    settings: QuantizationSettings, model: ModelSettings, compare_nll: CompareNll
) -> dict[str, Any]:
    """Measure; the result as written to JSON, `missing` being what failed.

    `compare_nll` gives the lines of `nll` of the result. Raises BenchmarkError for what cannot be
    measured, and where all fails.
    """
    subject = resolve(model.model)
    if subject.model == TINY_RANDOM:
        raise BenchmarkError(f"model {TINY_RANDOM!r} has learnt nothing to lose: name a checkpoint")
    if model.dtype not in ("auto", DTYPE):
        raise BenchmarkError(f"dtype is {model.dtype!r}; this command measures {DTYPE}")
    kernels = model.kernels or "cpu"
    console, missing = Console(stderr=True), dict[str, str]()
    nll, steps = list[dict[str, Any]](), list[dict[str, Any]]()
    with attempt(missing, "NLL", console):
        nll = compare_nll(subject)
    with attempt(missing, "decode steps", console):
        steps, left_out = _steps(subject, kernels, settings, console)
        missing |= left_out
    if not (nll or steps):
        raise BenchmarkError(next(iter(missing.values())))
    return {
        **origin(
            "quantization",
            subject.name,
            {"dtype": DTYPE, "kernels": kernels, "threads": torch.get_num_threads()},
            asdict(settings) | {"data": None},
        ),
        "nll": nll,
        "steps": steps,
        "missing": missing,
    }


def _steps(
    subject: Subject, kernels: str, settings: QuantizationSettings, console: Console
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Median milliseconds of a decode step, both in turn, round after round; and what is missing.

    Raises BenchmarkError where all fails.
    """
    cells = [(case, requests) for case in _CASES for requests in settings.requests]
    names = [f"a{index}" for index in range(_NUM_ADAPTERS)]
    most = max(settings.requests)
    # Every cell's prompts stay in the prefix cache, so that only the first round computes them.
    sizes = Sizes(most, 2 * len(cells) * most * (_CONTEXT + _STEPS + most))
    jobs = {(case, n): _jobs(case, n, subject, names) for case, n in cells}
    parts = [(case, n, quantization) for case, n in cells for quantization in QUANTIZATIONS]
    turns = Turns[_Part, float](parts, lambda part: f"{part[0]}, {part[1]}, {part[2]}", console)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        folders = write_adapters(subject, Path(folder, "adapters"), names)
        engines = {
            quantization: stack.enter_context(
                offline(
                    subject,
                    folders,
                    sizes,
                    Path(folder, quantization),
                    dtype=DTYPE,
                    kernels=kernels,
                    quantization=quantization,
                )
            )
            for quantization in QUANTIZATIONS
        }
        for number, part in turns.rounds(settings.rounds + 1, "decode steps"):
            case, requests, quantization = part
            with turns.turn(part) as seconds:
                steps = engines[quantization].decode_steps(jobs[case, requests], _STEPS)
                if number > 0:
                    seconds.extend(step.seconds for step in steps)
    turns.require_some()
    return _medians(cells, turns.values), turns.missing


def _jobs(case: str, requests: int, subject: Subject, names: Sequence[str]) -> list[Job]:
    prompts = make_prompts([_CONTEXT] * requests, case, subject.count_tokens)
    own = (
        (CaseMixture(),)
        if case == "base"
        else tuple(CaseMixture((name,), (1.0,)) for name in names)
    )
    return [Job(text, 0, own[i % len(own)]) for i, text in enumerate(prompts)]


def _medians(
    cells: Sequence[tuple[str, int]], seconds: Mapping[_Part, Sequence[float]]
) -> list[dict[str, Any]]:
    lines = []
    for case, requests in cells:
        if not all((case, requests, q) in seconds for q in QUANTIZATIONS):
            continue  # one without the other compares nothing
        medians = {q: statistics.median(seconds[case, requests, q]) for q in QUANTIZATIONS}
        lines.append(
            {
                "case": case,
                "requests": requests,
                **{f"{q}_ms": 1e3 * median for q, median in medians.items()},
                **{f"{q}_tokens_per_second": requests / median for q, median in medians.items()},
            }
        )
    return lines


_STEP_HEADS = ("decode step", "requests", "bf16 ms", "int8 ms", "bf16 tokens/s", "int8 tokens/s")
_NLL_HEADS = ("task", "system", "rows", "bf16", "int8", "difference [95 %]")


def _step_cells(line: Mapping[str, Any]) -> list[str]:
    times = [f"{line[f'{q}_ms']:.2f}" for q in QUANTIZATIONS]
    rates = [f"{line[f'{q}_tokens_per_second']:.0f}" for q in QUANTIZATIONS]
    return [line["case"], str(line["requests"]), *times, *rates]


def _nll_cells(line: Mapping[str, Any]) -> list[str]:
    change = line["difference"]
    means = [f"{line[q]['mean']:.4f}" for q in QUANTIZATIONS]
    interval = f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
    return [line["task"], line["system"], str(line["rows"]), *means, interval]


def step_lines(result: Mapping[str, Any]) -> list[str]:
    """Step times as a Markdown table."""
    return _table(_STEP_HEADS, [_step_cells(line) for line in result["steps"]])


def nll_lines(result: Mapping[str, Any]) -> list[str]:
    """Completion NLL in nats per token as a Markdown table: lower is better."""
    heading = "Completion NLL in nats per token, lower is better:"
    return [heading, "", *_table(_NLL_HEADS, [_nll_cells(line) for line in result["nll"]])]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return table_head(heads) + [row(cells) for cells in rows]


def result_tables(result: Mapping[str, Any]) -> list[Table]:
    """The result for a terminal."""
    steps, nll = Table(*_STEP_HEADS), Table(*_NLL_HEADS, title="NLL, nats per token")
    for line in result["steps"]:
        steps.add_row(*_step_cells(line))
    for line in result["nll"]:
        nll.add_row(*_nll_cells(line))
    return [steps, nll]


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    head = ["# `adaptermix bench quantization`", "", provenance(result), ""]
    lines = [*head, *step_lines(result), "", *nll_lines(result), ""]
    return "\n".join([*lines, *missing_lines(result.get("missing", {}))])
