"""`adaptermix eval`: what each routing is worth, measured through the server."""

from __future__ import annotations

import typer

from benchmarks.evaluation.settings import EvaluationSettings
from benchmarks.settings import ModelSettings
from server.cli.bench import reporting, write
from server.cli.fields import command_of


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("eval")(reporting(command_of(evaluate)))


def evaluate(evaluation: EvaluationSettings, model: ModelSettings) -> None:
    """Measure tasks under routings, on a server of its own: likelihoods, answers, tokens/s.

    The same command goes on with a run that was interrupted.
    """
    if evaluation.tune:
        from benchmarks.evaluation.report import tuning_markdown
        from benchmarks.evaluation.tune import run_tuning

        write(evaluation.tuned.with_suffix(""), run_tuning(evaluation, model), tuning_markdown)
        return
    from benchmarks.evaluation.plots import plot
    from benchmarks.evaluation.report import markdown
    from benchmarks.evaluation.run import run_evaluation

    write(evaluation.out, run_evaluation(evaluation, model), markdown, plot)
