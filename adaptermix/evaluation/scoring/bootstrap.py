"""Intervals of means over rows by the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over rows with its 95 % interval."""

    mean: float
    low: float
    high: float


def ratio(values: Sequence[float], weights: Sequence[float], *, seed: int = 0) -> Estimate:
    """sum(values) / sum(weights), rows resampled: nats per token from summed NLLs and counts.

    With weights of 1 this is the plain mean. For a paired comparison pass the differences of two
    systems on the same rows as `values`.
    """
    return macro([(values, weights)], seed=seed)


def macro(strata: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int = 0) -> Estimate:
    """The plain mean of each stratum's `ratio`: tasks count alike, however many rows they have.

    `strata` are (values, weights) of each. Rows are resampled within their stratum.
    """
    chance = np.random.default_rng(seed)
    drawn = np.zeros(_RESAMPLES)
    whole = 0.0
    for values, weights in strata:
        top, bottom = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
        if top.size == 0:
            raise ValueError("an interval needs at least one row")
        chosen = chance.integers(top.size, size=(_RESAMPLES, top.size))
        drawn += top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1) / len(strata)
        whole += float(top.sum() / bottom.sum()) / len(strata)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(whole, float(low), float(high))


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of `values` with its interval."""
    return ratio(values, [1.0] * len(values), seed=seed)
