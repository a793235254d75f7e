"""How well stated confidence matches what is right, and how well a score tells two kinds apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Statistic = Callable[..., float]

BINS = 10
_RESAMPLES = 2000


def reliability(confidence: Values, is_right: Values) -> list[dict[str, float]]:
    """Bins of equal width over [0, 1] that hold answers: how sure, how often right, how many."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "count": int((place == one).sum()),
            "confidence": float(confidence[place == one].mean()),
            "accuracy": float(is_right[place == one].mean()),
        }
        for one in range(BINS)
        if (place == one).any()
    ]


def calibration_error(confidence: Values, is_right: Values) -> float:
    """ECE: the mean over answers of |accuracy - confidence| of their bin.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    bins = reliability(confidence, is_right)
    gaps = [one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
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
