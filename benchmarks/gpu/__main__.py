"""`python -m benchmarks.gpu`: measure, then write a JSON and a Markdown file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu.measure import CardPlan, run
from benchmarks.gpu.report import markdown
from benchmarks.gpu.shape import SHAPES
from benchmarks.gpu.steps import CardSizes

CONTEXT = 128  # tokens of a prompt


def main(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json and gpu.md.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "llama-8b",
    kernels: Annotated[str, typer.Option(help="What computes a step.")] = "auto",
    requests: Annotated[int, typer.Option(min=1)] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a turn.")] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    targets: Annotated[str, typer.Option(help="Linears of the adapters: all, attention.")] = "all",
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoint may lie.")] = None,
) -> None:
    """Decode steps of a random model under 8 adapters, against the memory's speed and PEFT."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is not one of {', '.join(SHAPES)}")
    if targets not in ("all", "attention"):
        raise typer.BadParameter(f"{targets!r} is not one of all, attention")
    logging.basicConfig(level=logging.WARNING)
    console = Console()
    plan = CardPlan(
        shape, kernels, CardSizes(requests, CONTEXT, steps), rounds, max(steps // 4, 1), targets
    )
    result = run(plan, folder, console)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = markdown(result)
    (out / "gpu.md").write_text(page, encoding="utf-8")
    console.print(page, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
