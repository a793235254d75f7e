"""From the server's doubts to accuracy, calibration and how well a doubt tells what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptermix.evaluation.uncertainty.asking import AnswerUncertainty, Question
from adaptermix.evaluation.uncertainty.measures import (
    Values,
    auroc,
    calibration_error,
    estimate,
    reliability,
)

AVERAGE, ENSEMBLE = "average", "ensemble"
OPTIONS, TOKEN, INFORMATION = "entropy of the options", "entropy of the token", "mutual information"
# What each way of serving has to say of its own doubt; the first is what the others must beat.
SCORES = (
    *((AVERAGE, score) for score in (OPTIONS, TOKEN)),
    *((ENSEMBLE, score) for score in (OPTIONS, TOKEN, INFORMATION)),
)

Doubts = Mapping[str, Sequence[AnswerUncertainty]]  # by way of serving, one a question


def measures_of(questions: Sequence[Question], doubts: Doubts, seed: int) -> dict[str, Any]:
    """{ways, wrong, unfamiliar}: see `_way`, `_wrong` and `_unfamiliar`."""
    familiar = [n for n, question in enumerate(questions) if question.right is not None]
    known = {way: [found[n] for n in familiar] for way, found in doubts.items()}
    right = [questions[n].right for n in familiar]
    return {
        "ways": {way: _way(found, right, seed) for way, found in known.items()},
        "wrong": _wrong(known, right, seed),
        "unfamiliar": _unfamiliar(questions, doubts, seed),
    }


def _way(
    doubts: Sequence[AnswerUncertainty], right: Sequence[int | None], seed: int
) -> dict[str, Any]:
    """Accuracy, NLL of the right option and ECE, each with its interval; and the bins."""
    sure = np.array([one.options.max() for one in doubts])
    hits = 1.0 - _misses(doubts, right)
    nll = np.array(
        [-math.log(max(one.options[n or 0], 1e-300)) for one, n in zip(doubts, right, strict=True)]
    )
    return {
        "rows": len(doubts),
        "accuracy": estimate(_mean, hits, seed=seed),
        "nll": estimate(_mean, nll, seed=seed),
        "ece": estimate(calibration_error, sure, hits, seed=seed),
        "bins": reliability(sure, hits),
    }


def _wrong(doubts: Doubts, right: Sequence[int | None], seed: int) -> list[dict[str, Any]]:
    """AUROC of each way's own wrong answers by each of its scores.

    to_average: the paired difference to the average's wrong answers by its options' entropy.
    """
    misses = {way: _misses(found, right) for way, found in doubts.items()}
    plain = _score(doubts[AVERAGE], OPTIONS), misses[AVERAGE]
    found = []
    for way, score in SCORES:
        values = _score(doubts[way], score)
        entry = {"way": way, "score": score, **estimate(auroc, values, misses[way], seed=seed)}
        if (way, score) != SCORES[0]:
            entry["to_average"] = estimate(_gap, values, misses[way], *plain, seed=seed)
        found.append(entry)
    return found


def _unfamiliar(questions: Sequence[Question], doubts: Doubts, seed: int) -> list[dict[str, Any]]:
    """AUROC of other tasks' prompts among all by what is said of the first token."""
    is_other = np.array([float(question.right is None) for question in questions])
    plain = _score(doubts[AVERAGE], TOKEN)
    found = []
    for way, score in SCORES:
        if score == OPTIONS:
            continue
        values = _score(doubts[way], score)
        entry = {"way": way, "score": score, **estimate(auroc, values, is_other, seed=seed)}
        if way != AVERAGE:
            entry["to_average"] = estimate(_gap, values, is_other, plain, is_other, seed=seed)
        found.append(entry)
    return found


def _score(doubts: Sequence[AnswerUncertainty], score: str) -> Values:
    if score == OPTIONS:
        return np.array([one.option_entropy for one in doubts])
    if score == TOKEN:
        return np.array([one.token_entropy for one in doubts])
    return np.array([one.information for one in doubts])


def _misses(doubts: Sequence[AnswerUncertainty], right: Sequence[int | None]) -> Values:
    """1 where the likeliest option is not the right one, else 0."""
    pairs = zip(doubts, right, strict=True)
    return np.array([float(one.options.argmax() != n) for one, n in pairs])


def _mean(values: Values) -> float:
    return float(values.mean())


def _gap(ours: Values, ours_positive: Values, theirs: Values, theirs_positive: Values) -> float:
    return auroc(ours, ours_positive) - auroc(theirs, theirs_positive)
