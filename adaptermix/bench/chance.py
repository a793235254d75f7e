"""Who asks for which adapter, and when requests come in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def zipf(count: int, alpha: float) -> NDArray[np.float64]:
    """Probabilities [count]: p_i proportional to (i + 1)^-alpha; alpha 0 is uniform."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -alpha
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def picks(count: int, choices: int, alpha: float | None, seed: int) -> list[int]:
    """`count` numbers below `choices`: each in turn for alpha None, else drawn by `zipf`."""
    if alpha is None:
        return [index % choices for index in range(count)]
    drawn = np.random.default_rng(seed).choice(choices, size=count, p=zipf(choices, alpha))
    return [int(index) for index in drawn]


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which `count` requests come: `rate` a second, gaps exponential."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=count)
    return [float(moment) for moment in np.cumsum(gaps) - gaps[0]]
