"""The journal's runs, put together: an arm on a task over its seeds, what two arms differ in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.recipes.settings import ExperimentSizes
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.bootstrap import Estimate

Run = Mapping[str, Any]

_RESAMPLES = 2000  # of BLEU, which is computed anew for each


@dataclass(frozen=True, slots=True)
class Results:
    """Runs of one experiment with equal sizes."""

    experiment: str
    sizes: Mapping[str, Any]
    runs: tuple[Run, ...]
    failed: tuple[Run, ...]
    others: int  # runs of other sizes, left out

    def of(self, task: str, arm: str) -> dict[int, Run]:
        """Whole runs by seed."""
        return {
            run["job"]["seed"]: run
            for run in self.runs
            if (run["job"]["task"], run["job"]["arm"]) == (task, arm)
        }

    @property
    def seeds(self) -> list[int]:
        """All that a run was made with."""
        return sorted({run["job"]["seed"] for run in (*self.runs, *self.failed)})


def read_results(journal: Path, experiment: str) -> Results:
    """The runs of an experiment that have the sizes of its newest.

    Raises BenchmarkError where there is no journal.
    """
    if not journal.exists():
        raise BenchmarkError(f"{journal} is not there: run an experiment first")
    newest: dict[str, Run] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off when the harness was killed
            continue
        if entry["answer"]["job"]["experiment"] == experiment:
            newest[entry["key"]] = entry["answer"]
    sizes = list(newest.values())[-1]["job"]["sizes"] if newest else asdict(ExperimentSizes())
    alike = [run for run in newest.values() if run["job"]["sizes"] == sizes]
    whole = tuple(run for run in alike if "failed" not in run)
    failed = tuple(run for run in alike if "failed" in run)
    return Results(experiment, sizes, whole, failed, len(newest) - len(alike))


def nll(runs: Mapping[int, Run]) -> Estimate:
    """Nats per completion token, rows resampled; a row's value is its mean over the seeds."""
    return bootstrap.ratio(_row_means(runs, "nll"), _weights(runs))


def score(runs: Mapping[int, Run], measure: str) -> Estimate:
    """A score of the answers in [0, 1], rows resampled. BLEU is that of all rows together."""
    if measure == "BLEU":
        return _bleu(runs)
    rows = [np.asarray(run["answers"][measure], dtype=float) for run in runs.values()]
    return bootstrap.mean(list(np.mean(rows, axis=0)))


def difference(ours: Mapping[int, Run], theirs: Mapping[int, Run]) -> Estimate | None:
    """Of the NLL, on the same rows and the seeds that both have; None without one."""
    return _paired(ours, theirs, lambda run: run["nll"], lambda run: run["nll"])


def ensemble_difference(runs: Mapping[int, Run]) -> Estimate | None:
    """What the ensemble's NLL is above the merged adapter's, on the rows of the draws."""
    drawn = {seed: run for seed, run in runs.items() if "ensemble" in run}
    return _paired(
        drawn,
        drawn,
        lambda run: run["ensemble"],
        lambda run: run["nll"][: len(run["ensemble"])],
    )


def merged_on_draws(run: Run) -> float:
    """NLL per token of the merged adapter on the rows that draws were measured on."""
    rows = len(run["ensemble"])
    return float(sum(run["nll"][:rows]) / sum(run["weights"][:rows]))


def ensemble_on_draws(run: Run) -> float:
    """The same of the ensemble."""
    return float(sum(run["ensemble"]) / sum(run["weights"][: len(run["ensemble"])]))


def _paired(
    ours: Mapping[int, Run],
    theirs: Mapping[int, Run],
    mine: Callable[[Run], Sequence[float]],
    other: Callable[[Run], Sequence[float]],
) -> Estimate | None:
    both = sorted(set(ours) & set(theirs))
    if not both:
        return None
    gaps = [np.subtract(mine(ours[seed]), other(theirs[seed])) for seed in both]
    values = list(np.mean(gaps, axis=0))
    return bootstrap.ratio(values, _weights(ours)[: len(values)])


def _row_means(runs: Mapping[int, Run], name: str) -> list[float]:
    return list(np.mean([run[name] for run in runs.values()], axis=0))


def _weights(runs: Mapping[int, Run]) -> list[float]:
    """Completion tokens of each row, the same in every run."""
    return [float(weight) for weight in next(iter(runs.values()))["weights"]]


def _bleu(runs: Mapping[int, Run]) -> Estimate:
    """Corpus BLEU in [0, 1] in the mean of the seeds, from each row's counts."""
    counts = np.asarray([run["answers"]["BLEU"] for run in runs.values()])  # [seeds, rows, 10]
    chance = np.random.default_rng(0)
    rows = counts.shape[1]
    drawn = [
        _corpus(counts[:, chance.integers(rows, size=rows)].sum(axis=1)) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(_corpus(counts.sum(axis=1)), float(low), float(high))


def _corpus(sums: NDArray[np.int64]) -> float:
    """The mean over seeds of BLEU from summed counts [seeds, 10]."""
    from sacrebleu.metrics.bleu import BLEU

    scores = [
        BLEU.compute_bleu(
            correct=each[:4].tolist(),
            total=each[4:8].tolist(),
            sys_len=int(each[8]),
            ref_len=int(each[9]),
        ).score
        for each in sums
    ]
    return float(np.mean(scores)) / 100
