"""Centroids that lie too near for routing by similarity to tell their adapters apart.

A text that lies just at the centroid of i scores cos = 1 with it and cos(c_i, c_j) with that of j,
so its softmax weights stand to each other as exp((1 - cos(c_i, c_j)) / temperature) to 1. Where
that is less than RATIO at the default temperature, even the mean of an adapter's own texts does not
single it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from router_engine.routers.scoring import CosineParams, unit_rows

RATIO = 2.0
TEMPERATURE = CosineParams().temperature
BOUND = 1 - TEMPERATURE * math.log(RATIO)  # of cos(c_i, c_j)

_ROWS = 512  # of one product: its memory stays small beside thousands of centroids


@dataclass(frozen=True, slots=True)
class CentroidOverlap:
    """The centroids that lie too near to that of row `index`, the nearest first."""

    index: int
    others: tuple[int, ...]
    cosines: tuple[float, ...]


def overlapping_centroids(centroids: ArrayLike, of: Sequence[int]) -> list[CentroidOverlap]:
    """For each row in `of` that has any, the other rows above BOUND; centroids [n, d]."""
    rows = unit_rows(centroids)
    overlaps = []
    for start in range(0, len(of), _ROWS):
        part = of[start : start + _ROWS]
        for index, cosines in zip(part, rows[list(part)] @ rows.T, strict=True):
            cosines[index] = -1  # itself
            near = np.flatnonzero(cosines > BOUND)
            if len(near):
                near = near[np.argsort(-cosines[near], kind="stable")]
                overlaps.append(
                    CentroidOverlap(index, tuple(near.tolist()), tuple(cosines[near].tolist()))
                )
    return overlaps
