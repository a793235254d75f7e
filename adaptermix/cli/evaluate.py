"""`adaptermix eval`: what each routing is worth, measured through the server."""

from __future__ import annotations

import typer

from adaptermix.bench.settings import ModelSettings
from adaptermix.cli.bench import reporting, write
from adaptermix.cli.fields import command_of
from adaptermix.evaluation.settings import EvaluationSettings


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("eval")(reporting(command_of(evaluate)))


def evaluate(evaluation: EvaluationSettings, model: ModelSettings) -> None:
    """Measure tasks under routings, on a server of its own: likelihoods, answers, tokens/s.

    The same command goes on with a run that was interrupted.
    """
    if evaluation.tune:
        from adaptermix.evaluation.routing.report import tuning_markdown
        from adaptermix.evaluation.routing.tune import run_tuning

        write(evaluation.tuned.with_suffix(""), run_tuning(evaluation, model), tuning_markdown)
        return
    from adaptermix.evaluation.routing.plots import plot
    from adaptermix.evaluation.routing.report import markdown
    from adaptermix.evaluation.routing.run import run_evaluation

    write(evaluation.out, run_evaluation(evaluation, model), markdown, plot)
