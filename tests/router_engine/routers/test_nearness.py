"""The bound on centroids says what the router does: weights at a centroid are within a factor 2."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router_engine.routers.centroid_overlap import BOUND, overlapping_centroids
from router_engine.routers.scoring import SimilarityParams, cosine_scores, weights_from_scores


def at_cosine(cosine: float) -> list[list[float]]:
    """Two centroids, of lengths that mean nothing, with this cosine."""
    return [[2.0, 0.0], [0.3 * cosine, 0.3 * math.sqrt(1 - cosine**2)]]


@pytest.mark.parametrize("past", [-1e-6, 1e-6])
def test_the_bound_is_where_weights_differ_by_the_ratio(past: float) -> None:
    centroids, is_near = at_cosine(BOUND + past), past > 0
    for text in centroids:
        weights = weights_from_scores(cosine_scores(text, centroids), SimilarityParams())
        assert (max(weights) / min(weights) < 2) is is_near
    assert bool(overlapping_centroids(centroids, [0, 1])) is is_near


def test_all_that_are_near_are_found_nearest_first() -> None:
    random = np.random.default_rng(0)
    centroids = random.normal(size=(1200, 4))
    of = list(range(0, 1200, 2))
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    found = {near.index: near for near in overlapping_centroids(centroids, of)}
    for index in of:
        cosines = unit @ unit[index]
        others = [j for j in np.argsort(-cosines) if cosines[j] > BOUND and j != index]
        assert list(found[index].others) == others if others else index not in found
        if others:
            assert found[index].cosines == pytest.approx(cosines[others])


def test_one_alone_and_none_have_no_neighbours() -> None:
    assert overlapping_centroids([[1.0, 2.0]], [0]) == []
    assert overlapping_centroids([[1.0, 2.0], [1.0, 2.0]], []) == []
