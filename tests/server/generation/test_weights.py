"""What is read out of rows of weights."""

from __future__ import annotations

import math

import pytest

from server.generation.weight_statistics import entropy, strongest, switches


def test_entropy() -> None:
    assert entropy([1.0]) == 0
    assert str(entropy([1.0])) == "0.0"  # and not -0.0
    assert entropy([0.5, -0.5]) == pytest.approx(math.log(2))
    assert entropy([2.0, 2.0, 0.0]) == pytest.approx(math.log(2))
    assert entropy([0.0, 0.0]) == 0
    assert entropy([]) == 0


@pytest.mark.parametrize(
    ("weights", "adapter"),
    [
        ([0.2, 0.5, 0.3], 1),
        ([0.2, -0.5, 0.3], 1),
        ([0.5, 0.5], 0),
        ([-0.5, 0.5], 0),
        ([0.0, 0.0], None),
        ([], None),
    ],
)
def test_the_strongest_is_the_first_of_the_largest(weights: list[float], adapter: object) -> None:
    assert strongest(weights) == adapter


def test_switches_are_changes_between_neighbours() -> None:
    assert switches([]) == 0
    assert switches([2]) == 0
    assert switches([0, 0, 1, 1, None, 1]) == 3
