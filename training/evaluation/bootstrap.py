"""Intervals of means over rows by the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    top, bottom = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if top.size == 0:
        raise ValueError("an interval needs at least one row")
    chosen = np.random.default_rng(seed).integers(top.size, size=(_RESAMPLES, top.size))
    means: NDArray[np.float64] = top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of `values` with its interval."""
    return ratio(values, [1.0] * len(values), seed=seed)
