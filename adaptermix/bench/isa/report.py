"""The page of a run under each instruction set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptermix.bench.goals import OURS
from adaptermix.bench.isa.goals import of_peak
from adaptermix.bench.peers.report import goal_table
from adaptermix.bench.products import CPU, FP32
from adaptermix.bench.report import missing_lines, provenance, row


def markdown(result: Mapping[str, Any]) -> str:
    """Steps and prefill first, then every product."""
    settings = result["settings"]
    lines = ["# Each instruction set", "", provenance(result), ""]
    lines += [
        *goal_table(result["goals"]),
        "",
        f"Medians of {settings['rounds']} rounds. Every instruction set has processes of its own, "
        "held down to it by the environment (ours, ATen, oneDNN, MKL); llama.cpp is compiled for "
        "it. The peak is what fused multiply-adds in fp32 reach in registers, on all threads, in "
        "turn with the products, for other tenants of a machine slow both: products of bf16 or "
        "int8 may be above it where the processor has instructions for them. Decode: one token of "
        "so many requests. Prefill: one prompt of so many tokens, to the first token.",
        "",
        *_steps(result),
        "",
        *_products(result),
        "",
    ]
    lines += missing_lines(result["missing"])
    return "\n".join([*lines, ""])


def step_table(result: Mapping[str, Any]) -> list[str]:
    """Median milliseconds, a row for each instruction set and system."""
    isas = result["isas"]
    sizes = list(dict.fromkeys((s["kind"], s["size"]) for one in isas for s in one["steps"]))
    heads = ["instruction set", "system", *(f"{kind} {size}, ms" for kind, size in sizes)]
    lines = [row(heads), row(["---", "---", *["--:"] * len(sizes)])]
    for one in isas:
        for system in dict.fromkeys(step["system"] for step in one["steps"]):
            steps = [step for step in one["steps"] if step["system"] == system]
            ms = {(step["kind"], step["size"]): f"{step['ms']:.1f}" for step in steps}
            lines.append(row([one["isa"], system, *(ms.get(size, "-") for size in sizes)]))
    return lines


def expectations(result: Mapping[str, Any]) -> list[str]:
    """What ours does on a processor with each instruction set, in a user's words."""
    steps = [step for one in result["isas"] for step in one["steps"] if step["system"] == OURS]
    clients = sorted({step["size"] for step in steps if step["kind"] == "decode"})
    prompts = sorted({step["size"] for step in steps if step["kind"] == "prefill"})
    heads = ["instruction set", *(f"tokens/s, {n} at once" for n in clients)]
    heads += [f"first token of {n}, ms" for n in prompts]
    lines = [row(heads), row(["---", *["--:"] * (len(heads) - 1)])]
    for one in result["isas"]:
        own = {(s["kind"], s["size"]): s["ms"] for s in one["steps"] if s["system"] == OURS}
        rates = [1e3 * n / own["decode", n] if ("decode", n) in own else None for n in clients]
        waits = [own.get(("prefill", n)) for n in prompts]
        cells = [f"{value:.0f}" if value is not None else "-" for value in (*rates, *waits)]
        lines.append(row([one["isa"], *cells]))
    return lines


def peak_table(result: Mapping[str, Any]) -> list[str]:
    """Of all products of a step: operations a second over the peak of fp32."""
    rows = result["settings"]["rows"]
    lines = [
        row(["products over the fp32 peak", *(f"{n} rows" for n in rows)]),
        row(["---", *["--:"] * len(rows)]),
    ]
    for one in result["isas"]:
        shares = (result["scalars"].get(of_peak(one["isa"], n)) for n in rows)
        lines.append(row([one["isa"], *(f"{s[0]:.2f}" if s else "-" for s in shares)]))
    return lines


def _steps(result: Mapping[str, Any]) -> list[str]:
    heads = ("instruction set", "what", "size", "system", "ms", "over rounds")
    found = [row(heads), row(["---", "---", "--:", "---", "--:", "--:"])]
    for one in result["isas"]:
        for step in one["steps"]:
            spread = f"{min(step['ms_rounds']):.1f}-{max(step['ms_rounds']):.1f}"
            names = [one["isa"], step["kind"], str(step["size"]), step["system"]]
            found.append(row([*names, f"{step['ms']:.2f}", spread]))
    return found


def _products(result: Mapping[str, Any]) -> list[str]:
    lines = [(one, line) for one in result["isas"] for line in one["products"]]
    names = list(dict.fromkeys(name for _, line in lines for name in line["us"]))
    heads = ["instruction set", "product", "rows", *(f"{name} us" for name in names)]
    heads += ["cpu GFLOP/s", "of peak", "best fp32 GFLOP/s"]
    found = [row(heads), row(["---", "---", *["--:"] * (len(heads) - 2)])]
    for one, line in lines:
        us = line["us"]
        shown = [f"{us[name]:.0f}" if name in us else "-" for name in names]
        speed = line["flops"] / us[CPU] / 1e3 if CPU in us else None
        rates = [f"{speed:.0f}", f"{1e9 * speed / line['peak']:.2f}"] if speed else ["-", "-"]
        best = f"{line['flops'] / us[FP32] / 1e3:.0f}" if FP32 in us else "-"
        found.append(row([one["isa"], line["product"], str(line["rows"]), *shown, *rates, best]))
    return found
