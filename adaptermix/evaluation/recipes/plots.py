"""Pictures of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adaptermix.bench.plots import save
from adaptermix.evaluation.recipes.arms import experiment_named
from adaptermix.evaluation.recipes.results import Results, ensemble_on_draws, merged_on_draws, nll


def plot_nll(results: Results, path: Path) -> bool:
    """NLL of every arm with its interval, a panel a task; False where there is nothing."""
    known = experiment_named(results.experiment)
    tasks = [task for task in known.tasks if any(results.of(task, arm) for arm in known.arms)]
    if not tasks:
        return False
    panels, figure = _panels(len(tasks), 0.35 * len(known.arms) + 1)
    names = list(known.arms)
    for panel, task in zip(panels, tasks, strict=True):
        for place, arm in enumerate(names):
            runs = results.of(task, arm)
            if runs:
                one = nll(runs)
                spread = [[one.mean - one.low], [one.high - one.mean]]
                panel.errorbar([one.mean], [place], xerr=spread, fmt="o", color="C0", capsize=2)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_title(task)
        panel.set_xlabel("nats per completion token")
        panel.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    return True


def plot_draws(results: Results, path: Path) -> bool:
    """How random draws of copies are spread, and where the merged adapter and the ensemble stand.

    False where no run has draws.
    """
    known = experiment_named(results.experiment)
    drawn = {
        task: [
            (f"{arm}, seed {seed}", run)
            for arm in known.arms
            for seed, run in results.of(task, arm).items()
            if "draws" in run
        ]
        for task in known.tasks
    }
    drawn = {task: runs for task, runs in drawn.items() if runs}
    if not drawn:
        return False
    panels, figure = _panels(len(drawn), 0.45 * max(map(len, drawn.values())) + 1.2)
    for panel, (task, runs) in zip(panels, drawn.items(), strict=True):
        places = range(len(runs))
        values = [run["draws"] for _, run in runs]
        panel.violinplot(values, places, orientation="horizontal", showextrema=False, widths=0.8)
        for place, draws in zip(places, values, strict=True):
            panel.plot(draws, [place] * len(draws), "|", color="C0")
        merged = [merged_on_draws(run) for _, run in runs]
        panel.plot(merged, places, "o", color="C3", label="merged")
        ensembles = [ensemble_on_draws(run) for _, run in runs]
        panel.plot(ensembles, places, "D", color="C2", markersize=4, label="ensemble")
        panel.set_yticks(places, [name for name, _ in runs])
        panel.invert_yaxis()
        panel.set_title(task)
        panel.set_xlabel("nats per completion token")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    save(figure, path)
    return True


def _panels(count: int, height: float) -> tuple[list[Any], Figure]:
    figure = Figure(figsize=(6 * count, height), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    return list(panels), figure
