"""`python -m benchmarks`: run the serving benchmark, write its JSON and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.cases import CASES, choose_cases
from benchmarks.load import BenchmarkError
from benchmarks.process import default_model
from benchmarks.report import plot, result_table, write_json
from benchmarks.serve import Plan, run_benchmark
from benchmarks.subject import Subject
from router_engine.model.assets import DEFAULT

RESULTS = Path(__file__).resolve().parent / "results"
KERNELS = "reference" if torch.cuda.is_available() else "cpu"
CASE_NAMES = ", ".join(case.name for case in CASES)

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help="default, tiny-random, or a checkpoint directory.")
    ] = DEFAULT,
    case: Annotated[
        list[str] | None, typer.Option(help=f"Of {CASE_NAMES}; repeatable. All when left out.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients at once; repeatable. 1, 8 and 32.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every cell is measured.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 64,
    dtype: Annotated[str, typer.Option(help="Number format of the server.")] = "auto",
    kernels: Annotated[
        str, typer.Option(help="As for `adaptermix serve`, but auto would change in mid-run.")
    ] = KERNELS,
    out: Annotated[
        Path, typer.Option(help="The results, without their endings .json and .png.")
    ] = RESULTS / "serve",
) -> None:
    """Closed-loop load over HTTP on a server of its own; prints a table, writes JSON and a plot."""
    plan = Plan(
        concurrencies=tuple(concurrency or Plan().concurrencies),
        rounds=rounds,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        kernels=kernels,
    )
    console = Console(stderr=True)
    try:
        cases = choose_cases(case or [])
        subject = Subject.of(default_model() if model == DEFAULT else model)
        result = run_benchmark(subject, cases, plan)
    except (BenchmarkError, ValueError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    write_json(out.with_suffix(".json"), result)
    plot(out.with_suffix(".png"), result)
    Console().print(result_table(result))
    console.print(f"written: {out.with_suffix('.json')} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    app()
