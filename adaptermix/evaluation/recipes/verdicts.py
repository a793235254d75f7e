"""Claims of the papers, and what the runs say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptermix.evaluation.recipes.arms import experiment_named
from adaptermix.evaluation.recipes.results import (
    Results,
    difference,
    ensemble_difference,
    merged_on_draws,
)
from adaptermix.evaluation.scoring.bootstrap import Estimate

_NEAR_TOP = 0.75  # of the draws, that the merged adapter is better than


@dataclass(frozen=True, slots=True)
class Claim:
    """`better` has the lower NLL than `worse`."""

    text: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """What a claim came to on a task."""

    claim: str
    task: str
    said: str
    numbers: str


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


def verdicts(results: Results) -> list[ClaimVerdict]:
    """Every claim on every task of which the runs are there."""
    said = []
    for task in experiment_named(results.experiment).tasks:
        for claim in CLAIMS[results.experiment]:
            gap = difference(results.of(task, claim.better), results.of(task, claim.worse))
            if gap is not None:
                text = f"{claim.text} (`{claim.better}` - `{claim.worse}`)"
                said.append(ClaimVerdict(text, task, _said(gap), interval(gap, sign="+")))
        said += _of_draws(results, task)
    return said


def interval(estimate: Estimate, *, scale: float = 1, sign: str = "") -> str:
    """Mean and interval; per cent with one digit, nats with three."""
    digits = 3 if scale == 1 else 1
    mean, low, high = (
        f"{value * scale:{sign}.{digits}f}"
        for value in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean} [{low}, {high}]"


def better_than(merged: float, draws: Sequence[float]) -> int:
    """How many draws have a higher NLL."""
    return sum(draw > merged for draw in draws)


def _said(gap: Estimate) -> str:
    if gap.high < 0:
        return "**holds**"
    return "**does not hold**" if gap.low > 0 else "not told apart"


def _of_draws(results: Results, task: str) -> list[ClaimVerdict]:
    said = []
    for arm in experiment_named(results.experiment).arms:
        runs = {seed: run for seed, run in results.of(task, arm).items() if "draws" in run}
        if not runs:
            continue
        beaten = sum(better_than(merged_on_draws(run), run["draws"]) for run in runs.values())
        count = sum(len(run["draws"]) for run in runs.values())
        word = "**holds**" if beaten >= _NEAR_TOP * count else "**does not hold**"
        claim = f"merged is near the top of the draws (`{arm}`)"
        said.append(ClaimVerdict(claim, task, word, f"better than {beaten} of {count} draws"))
        gap = ensemble_difference(runs)
        if gap is not None:
            claim = f"an ensemble of draws beats merged (`{arm}`)"
            said.append(ClaimVerdict(claim, task, _said(gap), interval(gap, sign="+")))
    return said
