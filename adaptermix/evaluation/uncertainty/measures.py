"""Uncertainty of answers: accuracy, calibration, and how well a score tells two kinds apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.scoring.tasks import options_of
from adaptermix.training.data import Row

_ANY = " A"  # of a prompt without options only what comes before its answer is wanted
Values = NDArray[np.float64]
Statistic = Callable[..., float]

BINS = 10
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its options."""

    prompt: str
    options: tuple[str, ...]
    right: int | None  # index of the right option; None where only the uncertainty is wanted

    @property
    def body(self) -> dict[str, Any]:
        """Of its request to /score, but the mixture."""
        return {
            "inputs": self.prompt,
            "completions": list(self.options),
            "uncertainty": True,
        }

    @classmethod
    def choice(cls, row: Row) -> Question:
        """A multiple-choice row."""
        options = tuple(f" {letter}" for letter in options_of(row.prompt))
        if row.completion not in options:
            raise BenchmarkError(f"{row.completion!r} is no option of {row.prompt!r}")
        return cls(row.prompt, options, options.index(row.completion))

    @classmethod
    def unfamiliar(cls, row: Row) -> Question:
        """Another task's row."""
        return cls(row.prompt, (_ANY,), None)


@dataclass(frozen=True, slots=True)
class AnswerUncertainty:
    """The uncertainty of one answer; entropies in nats."""

    options: NDArray[np.float64]  # [options] their probabilities, which sum to 1
    token_entropy: float  # of the first token of the answer, over the vocabulary
    information: float  # of that token, mutual; nan where one sequence answered

    @property
    def option_entropy(self) -> float:
        return float(-sum(p * math.log(p) for p in self.options if p > 0))


def uncertainty_of(reply: Mapping[str, Any]) -> AnswerUncertainty:
    """From a reply of /score."""
    logprobs = np.array([score["logprob"] for score in reply["scores"]])
    shares = np.exp(logprobs - logprobs.max())
    told = reply["scores"][0]["tokens"][0]["uncertainty"]
    information = told.get("mutual_information", math.nan)
    return AnswerUncertainty(shares / shares.sum(), told["entropy"], information)


def reliability(confidence: Values, is_right: Values) -> list[dict[str, float]]:
    """Bins of equal width over [0, 1] that hold answers: how sure, how often right, how many."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "count": int((place == index).sum()),
            "confidence": float(confidence[place == index].mean()),
            "accuracy": float(is_right[place == index].mean()),
        }
        for index in range(BINS)
        if (place == index).any()
    ]


def calibration_error(confidence: Values, is_right: Values) -> float:
    """ECE: the mean over answers of |accuracy - confidence| of their bin.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    bins = reliability(confidence, is_right)
    gaps = [entry["count"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins]
    return float(sum(gaps) / len(confidence))


def auroc(scores: Values, is_positive: Values) -> float:
    """The chance that a positive has a higher score than a negative, ties count half.

    nan where there are not both. Source: the Mann-Whitney statistic over mean ranks.
    """
    positive = int(is_positive.sum())
    negative = len(is_positive) - positive
    if not positive or not negative:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores their mean, from 1
    total = ranks[place][is_positive > 0].sum()
    return float((total - positive * (positive + 1) / 2) / (positive * negative))


def estimate(statistic: Statistic, *columns: Values, seed: int = 0) -> dict[str, Any]:
    """{mean, low, high}: a statistic of columns [rows], and its 95 % interval over resampled rows.

    Rows are resampled together, so that a difference of two columns is a paired one. None for
    nan: a statistic that is not defined on these rows.
    """
    chance = np.random.default_rng(seed)
    count = len(columns[0])
    drawn = []
    for _ in range(_RESAMPLES):
        rows = chance.integers(count, size=count)
        drawn.append(statistic(*(column[rows] for column in columns)))
    value = statistic(*columns)
    if np.isnan(value):
        return {"mean": None, "low": None, "high": None}
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"mean": value, "low": float(low), "high": float(high)}


AVERAGE, ENSEMBLE = "average", "ensemble"
OPTIONS, TOKEN, INFORMATION = "entropy of the options", "entropy of the token", "mutual information"
# The scores of uncertainty of each way of serving; the others must beat the first.
SCORES = (
    *((AVERAGE, score) for score in (OPTIONS, TOKEN)),
    *((ENSEMBLE, score) for score in (OPTIONS, TOKEN, INFORMATION)),
)

Uncertainties = Mapping[str, Sequence[AnswerUncertainty]]  # by way of serving, one a question


def measures_of(questions: Sequence[Question], answers: Uncertainties, seed: int) -> dict[str, Any]:
    """{ways, wrong, unfamiliar}: see `_way`, `_wrong` and `_unfamiliar`."""
    familiar = [n for n, question in enumerate(questions) if question.right is not None]
    familiar_answers = {way: [each[n] for n in familiar] for way, each in answers.items()}
    right = [questions[n].right for n in familiar]
    return {
        "ways": {way: _way(each, right, seed) for way, each in familiar_answers.items()},
        "wrong": _wrong(familiar_answers, right, seed),
        "unfamiliar": _unfamiliar(questions, answers, seed),
    }


def _way(
    answers: Sequence[AnswerUncertainty], right: Sequence[int | None], seed: int
) -> dict[str, Any]:
    """Accuracy, NLL of the right option and ECE, each with its interval; and the bins."""
    sure = np.array([answer.options.max() for answer in answers])
    hits = 1.0 - _misses(answers, right)
    nll = np.array(
        [
            -math.log(max(answer.options[n or 0], 1e-300))
            for answer, n in zip(answers, right, strict=True)
        ]
    )
    return {
        "rows": len(answers),
        "accuracy": estimate(_mean, hits, seed=seed),
        "nll": estimate(_mean, nll, seed=seed),
        "ece": estimate(calibration_error, sure, hits, seed=seed),
        "bins": reliability(sure, hits),
    }


def _wrong(answers: Uncertainties, right: Sequence[int | None], seed: int) -> list[dict[str, Any]]:
    """AUROC of each way's own wrong answers by each of its scores.

    to_average: the paired difference to the average's wrong answers by its options' entropy.
    """
    misses = {way: _misses(each, right) for way, each in answers.items()}
    plain = _score(answers[AVERAGE], OPTIONS), misses[AVERAGE]
    entries = []
    for way, score in SCORES:
        values = _score(answers[way], score)
        entry = {"way": way, "score": score, **estimate(auroc, values, misses[way], seed=seed)}
        if (way, score) != SCORES[0]:
            entry["to_average"] = estimate(_gap, values, misses[way], *plain, seed=seed)
        entries.append(entry)
    return entries


def _unfamiliar(
    questions: Sequence[Question], answers: Uncertainties, seed: int
) -> list[dict[str, Any]]:
    """AUROC of other tasks' prompts among all by what is said of the first token."""
    is_other = np.array([float(question.right is None) for question in questions])
    plain = _score(answers[AVERAGE], TOKEN)
    entries = []
    for way, score in SCORES:
        if score == OPTIONS:
            continue
        values = _score(answers[way], score)
        entry = {"way": way, "score": score, **estimate(auroc, values, is_other, seed=seed)}
        if way != AVERAGE:
            entry["to_average"] = estimate(_gap, values, is_other, plain, is_other, seed=seed)
        entries.append(entry)
    return entries


def _score(answers: Sequence[AnswerUncertainty], score: str) -> Values:
    if score == OPTIONS:
        return np.array([answer.option_entropy for answer in answers])
    if score == TOKEN:
        return np.array([answer.token_entropy for answer in answers])
    return np.array([answer.information for answer in answers])


def _misses(answers: Sequence[AnswerUncertainty], right: Sequence[int | None]) -> Values:
    """1 where the likeliest option is not the right one, else 0."""
    pairs = zip(answers, right, strict=True)
    return np.array([float(answer.options.argmax() != n) for answer, n in pairs])


def _mean(values: Values) -> float:
    return float(values.mean())


def _gap(ours: Values, ours_positive: Values, theirs: Values, theirs_positive: Values) -> float:
    return auroc(ours, ours_positive) - auroc(theirs, theirs_positive)
