"""The weights history of one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_engine.scheduling.weights_history import WeightsHistory
from router_engine.sparse_weights import SparseWeights

ONE, TWO, THREE = (SparseWeights.from_dense((weight,)) for weight in (1.0, 2.0, 3.0))
BOTH = SparseWeights.from_dense((0.5, 1.0))


def test_fixed_weights_hold_everywhere() -> None:
    history = WeightsHistory.fixed(BOTH)
    assert history.at(0) == history.at(10**9) == BOTH
    assert history.between(3, 8) == ((5, BOTH),)
    assert history.runs == ((0, BOTH),)


def test_runs_follow_one_another() -> None:
    history = WeightsHistory()
    history.extend(ONE, 4)
    history.extend(TWO, 6)
    history.extend(TWO, 7)
    history.extend(THREE, 9)
    assert history.runs == ((0, ONE), (4, TWO), (7, THREE))
    assert history.between(0, 9) == ((4, ONE), (3, TWO), (2, THREE))
    assert history.between(3, 5) == ((1, ONE), (1, TWO))
    assert history.between(4, 7) == ((3, TWO),)
    assert history.newest == THREE


def test_replace_forgets_what_was() -> None:
    history = WeightsHistory()
    assert history.newest is None
    history.extend(ONE, 4)
    history.replace(TWO, 6)
    assert history.runs == ((0, TWO),)
    assert history.known_until == 6


@pytest.mark.parametrize("position", [-1, 4, 5])
def test_positions_without_weights_are_errors(position: int) -> None:
    history = WeightsHistory()
    history.extend(ONE, 4)
    with pytest.raises(IndexError, match=r"outside \[0, 4\)"):
        history.at(position)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (2, 2), (-1, 2), (4, 5)])
def test_ranges_without_weights_are_errors(start: int, stop: int) -> None:
    history = WeightsHistory()
    history.extend(ONE, 4)
    with pytest.raises(IndexError, match=r"not within \[0, 4\)"):
        history.between(start, stop)


def test_what_is_known_never_shrinks() -> None:
    history = WeightsHistory()
    history.extend(ONE, 4)
    with pytest.raises(ValueError, match="known until 4"):
        history.extend(TWO, 4)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=12),
    st.data(),
)
def test_runs_between_agree_with_each_position(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    history = WeightsHistory()
    flat: list[SparseWeights] = []
    for length, value in runs:
        weights = SparseWeights.from_dense((float(value),))
        flat += [weights] * length
        history.extend(weights, len(flat))
    start = data.draw(st.integers(0, len(flat) - 1))
    stop = data.draw(st.integers(start + 1, len(flat)))
    between = history.between(start, stop)
    assert [weights for length, weights in between for _ in range(length)] == flat[start:stop]
    assert [history.at(position) for position in range(start, stop)] == flat[start:stop]
