"""Popularity and arrivals."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptermix.bench.workload import picks, poisson_arrivals, zipf


def test_zipf_by_hand() -> None:
    assert zipf(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert zipf(4, 0.0) == pytest.approx([0.25] * 4)


@given(st.integers(1, 200), st.floats(0, 3))
def test_zipf_is_a_falling_distribution(count: int, alpha: float) -> None:
    shares = zipf(count, alpha)
    assert shares.sum() == pytest.approx(1)
    assert np.all(np.diff(shares) <= 0)


def test_picks_follow_zipf() -> None:
    drawn = picks(20_000, 4, 1.0, seed=1)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares == pytest.approx(zipf(4, 1.0), abs=0.02)
    assert drawn == picks(20_000, 4, 1.0, seed=1)
    assert drawn != picks(20_000, 4, 1.0, seed=2)


def test_without_an_exponent_each_takes_its_turn() -> None:
    assert picks(5, 3, None, seed=1) == [0, 1, 2, 0, 1]


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(5_000, rate=4.0, seed=3)
    gaps = np.diff(moments)
    assert moments[0] == 0
    assert np.all(gaps >= 0)
    assert statistics.mean(gaps) == pytest.approx(1 / 4, rel=0.05)
    # Exponential: the deviation equals the mean, and a share of 1/e is longer than it.
    assert statistics.pstdev(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert np.mean(gaps > 1 / 4) == pytest.approx(np.exp(-1), abs=0.03)
    assert moments == poisson_arrivals(5_000, rate=4.0, seed=3)
