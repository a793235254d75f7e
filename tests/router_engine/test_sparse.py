"""Weights with the zeros left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router_engine.sparse_weights import SparseWeights

WEIGHTS = st.lists(st.sampled_from([0.0, -0.0, 0.25, -1.5, 1e-30]), max_size=6)


@given(WEIGHTS, WEIGHTS)
def test_they_are_what_they_were_made_of(ours: list[float], theirs: list[float]) -> None:
    weights = SparseWeights.from_dense(ours)
    assert weights.dense == tuple(ours)
    assert 0 not in weights.values
    assert list(weights.columns) == sorted(weights.columns)
    assert (weights == SparseWeights.from_dense(theirs)) == (ours == theirs)
    assert ours != theirs or hash(weights) == hash(SparseWeights.from_dense(theirs))
