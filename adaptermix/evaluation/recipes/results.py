"""The journal's runs, put together: an arm on a task over its seeds, what two arms differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.verdicts import Status, judge_interval
from adaptermix.evaluation.intervals import interval
from adaptermix.evaluation.journal import read_journal
from adaptermix.evaluation.recipes.arms import experiment_named
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.bootstrap import Estimate
from adaptermix.evaluation.settings import ExperimentSizes

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
    newest: dict[str, Run] = {
        key: run
        for key, run in read_journal(journal).items()
        if run["job"]["experiment"] == experiment
    }
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
    """The ensemble's NLL less the merged adapter's, on the rows of draws; None without draws."""
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


_WORDS: Mapping[Status, str] = {
    "met": "**holds**",
    "missed": "**does not hold**",
    "open": "not told apart",
}
_NEAR_TOP = 0.75  # of the draws, that the merged adapter is better than


@dataclass(frozen=True, slots=True)
class Claim:
    """`better` has the lower NLL than `worse`."""

    text: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class ClaimLine:
    """A claim judged on a task, as a row of the page."""

    claim: str
    task: str
    said: str  # whether it holds
    numbers: str  # that say so


CLAIMS = {
    "adamix": (
        Claim("merged LoRA is at least a single one", "adamix-lora", "lora"),
        Claim("the same without consistency", "adamix-lora-c0", "lora"),
        Claim("merged bottleneck is at least a single one", "adamix-bottleneck", "bottleneck"),
        Claim("the same without consistency", "adamix-bottleneck-c0", "bottleneck"),
        Claim("consistency helps LoRA", "adamix-lora", "adamix-lora-c0"),
        Claim("consistency helps bottlenecks", "adamix-bottleneck", "adamix-bottleneck-c0"),
        Claim("consistency of 10 helps LoRA", "adamix-lora-c10", "adamix-lora-c0"),
        Claim("merged LoRA beats one LoRA of equal compute", "adamix-lora", "lora-twice"),
    ),
    "moa": (
        Claim("soft MoA beats LoRA", "moa-soft", "lora"),
        Claim("soft MoA beats a mixture of LoRA", "moa-soft", "moe-lora"),
        Claim("sparse MoA is at least soft", "moa-sparse", "moa-soft"),
        Claim("a trained threshold beats a frozen one", "moa-sparse-trained", "moa-sparse"),
        Claim("a SwiGLU router beats a linear one", "moa-soft-swiglu", "moa-soft"),
        Claim("gates of tokens beat gates of prompts", "moa-soft", "moa-instance"),
    ),
}


def verdicts(results: Results) -> list[ClaimLine]:
    """Every claim on every task of which the runs are there."""
    lines = []
    for task in experiment_named(results.experiment).tasks:
        for claim in CLAIMS[results.experiment]:
            gap = difference(results.of(task, claim.better), results.of(task, claim.worse))
            if gap is not None:
                text = f"{claim.text} (`{claim.better}` - `{claim.worse}`)"
                lines.append(ClaimLine(text, task, _said(gap), interval(asdict(gap), sign="+")))
        lines += _of_draws(results, task)
    return lines


def better_than(merged: float, draws: Sequence[float]) -> int:
    """The number of draws that have a higher NLL."""
    return sum(draw > merged for draw in draws)


def _said(gap: Estimate) -> str:
    return _WORDS[judge_interval(gap.low, gap.high)]


def _of_draws(results: Results, task: str) -> list[ClaimLine]:
    lines = []
    for arm in experiment_named(results.experiment).arms:
        runs = {seed: run for seed, run in results.of(task, arm).items() if "draws" in run}
        if not runs:
            continue
        beaten = sum(better_than(merged_on_draws(run), run["draws"]) for run in runs.values())
        count = sum(len(run["draws"]) for run in runs.values())
        word = _WORDS["met" if beaten >= _NEAR_TOP * count else "missed"]
        claim = f"merged is near the top of the draws (`{arm}`)"
        lines.append(ClaimLine(claim, task, word, f"better than {beaten} of {count} draws"))
        gap = ensemble_difference(runs)
        if gap is not None:
            claim = f"an ensemble of draws beats merged (`{arm}`)"
            lines.append(ClaimLine(claim, task, _said(gap), interval(asdict(gap), sign="+")))
    return lines
