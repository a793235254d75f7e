"""Scores and weights against the equations, written out number by number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from router_engine.routers.errors import RouterInputError
from router_engine.routers.scoring import (
    CosineParams,
    SimilarityParams,
    cosine_scores,
    weigh_rows,
    weights_from_scores,
    winner_is_pushed_down,
)

SCORES = np.array([0.2, 0.5, 0.1, 0.2])


def weigh(params: dict[str, Any], scores: Any = SCORES) -> tuple[float, ...]:
    return weights_from_scores(np.asarray(scores, dtype=np.float64), SimilarityParams.parse(params))


def test_cosine_divides_by_both_lengths() -> None:
    scores = cosine_scores([3.0, 4.0], [[2.0, 0.0], [-30.0, -40.0], [4.0, -3.0], [0.0, 0.0]])
    assert scores == pytest.approx([0.6, -1.0, 0.0, 0.0])


def test_softmax_is_of_scores_over_temperature() -> None:
    exponentials = [math.exp(s / 0.25) for s in SCORES]
    expected = [e / sum(exponentials) for e in exponentials]
    assert weigh({"temperature": 0.25}) == pytest.approx(expected)


def test_top_k_takes_the_softmax_over_the_kept_ones_only() -> None:
    best, second = math.exp(0.5 / 0.1), math.exp(0.2 / 0.1)
    expected = [second / (best + second), best / (best + second), 0.0, 0.0]
    assert weigh({"temperature": 0.1, "top_k": 2}) == pytest.approx(expected)


def test_top_k_prefers_the_earlier_of_two_equal_scores() -> None:
    weights = weigh({"top_k": 2}, [0.3, 0.1, 0.3, 0.3])
    assert [w > 0 for w in weights] == [True, False, True, False]


def test_top_k_above_the_number_of_candidates_keeps_all() -> None:
    assert weigh({"top_k": 9}) == weigh({})


def test_paper_sharpens_the_winner_alone() -> None:
    exponentials = [math.exp(s) for s in (0.2, 4.0 * 0.5, 0.1, 0.2)]
    expected = [e / sum(exponentials) for e in exponentials]
    assert weigh({"scoring": "paper"}) == pytest.approx(expected)


def test_paper_gives_the_published_example() -> None:
    weights = weigh({"scoring": "paper"}, [0.5, 0.2, 0.2, 0.2])
    assert weights == pytest.approx([0.66, 0.11, 0.11, 0.11], abs=0.01)


def test_paper_sharpens_the_first_of_equal_winners() -> None:
    weights = weigh({"scoring": "paper"}, [0.4, 0.4])
    assert weights[0] > weights[1]


def test_paper_pushes_a_negative_winner_down() -> None:
    scores = np.array([-0.1, -0.2])
    params = SimilarityParams.parse({"scoring": "paper"})
    exponentials = [math.exp(-0.4), math.exp(-0.2)]
    expected = [e / sum(exponentials) for e in exponentials]
    assert weights_from_scores(scores, params) == pytest.approx(expected)
    assert winner_is_pushed_down(scores, params)
    assert not winner_is_pushed_down(-scores, params)
    assert not winner_is_pushed_down(scores, SimilarityParams.parse({}))


def test_weights_are_finite_at_extreme_scores() -> None:
    assert weigh({"temperature": 1e-6}, [1.0, -1.0]) == (1.0, 0.0)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.3}, {"top_k": 2}])
def test_below_the_threshold_all_weights_are_zero(params: dict[str, Any]) -> None:
    """The best of SCORES is 0.5; a score that is just the threshold is not below it."""
    assert weigh({**params, "threshold": 0.5}) == weigh(params)
    assert weigh({**params, "threshold": np.nextafter(0.5, 1).item()}) == (0.0,) * 4
    assert weigh({**params, "threshold": -1.0}, -SCORES) == weigh(params, -SCORES)
    assert weigh({**params, "threshold": 0.0}, -SCORES) == (0.0,) * 4


@pytest.mark.parametrize("given", [{}, {"top_k": 2}, {"threshold": 0.5}])
def test_a_score_that_is_no_number_spoils_its_own_row_alone(given: dict[str, Any]) -> None:
    params = SimilarityParams.parse(given)
    rows = ROWS[:5].copy()
    rows[1, 3], rows[3] = math.nan, math.nan
    found, expected = weigh_rows(rows, params), weigh_rows(ROWS[:5], params)
    for index in (0, 2, 4):
        assert found[index] == expected[index]
    for index in (1, 3):
        assert all(math.isnan(value) for value in found[index].values)


def test_a_score_of_minus_infinity_has_no_weight() -> None:
    first, second = math.exp(0.5 / 0.1), math.exp(0.2 / 0.1)
    expected = [0.0, first / (first + second), second / (first + second)]
    assert weigh({}, [-math.inf, 0.5, 0.2]) == pytest.approx(expected)
    assert weigh({"top_k": 3}, [-math.inf, 0.5, 0.2]) == pytest.approx(expected)


ROWS = np.random.default_rng(3).uniform(-1, 1, size=(40, 7)).astype(np.float32)


def plain(scores: Sequence[float], params: CosineParams) -> list[float]:
    """The rule written out for one row."""
    best = sorted(range(len(scores)), key=lambda j: -scores[j])[: params.top_k]
    powers = {j: math.exp(scores[j] / params.temperature) for j in best}
    if params.threshold is not None and max(scores) < params.threshold:
        powers = {}
    return [powers.get(j, 0.0) / sum(powers.values()) if powers else 0.0 for j in range(7)]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.01},
        {"top_k": 2},
        {"top_k": 99},
        {"threshold": 0.8},
        {"top_k": 1, "threshold": 0.5, "temperature": 2.0},
    ],
    ids=str,
)
def test_many_rows_are_weighed_as_each_alone(params: dict[str, Any]) -> None:
    parsed = CosineParams.model_validate(params)
    rows = weigh_rows(ROWS, parsed)
    for row, scores in zip(rows, ROWS.tolist(), strict=True):
        assert row.dense == pytest.approx(plain(scores, parsed), abs=1e-12)
    assert any(not row.columns for row in rows) == ("threshold" in params)  # negative control


def test_of_equal_scores_the_earlier_candidate_stays() -> None:
    rows = weigh_rows(np.ones((2, 4), np.float32), CosineParams(top_k=2))
    assert [row.dense for row in rows] == [(0.5, 0.5, 0, 0)] * 2


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temprature": 1.0}, "'temprature'; did you mean temperature"),
        ({"every": 2}, "takes no parameter 'every'"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": "0.1"}, "temperature = '0.1'"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_k": True}, "top_k = True"),
        ({"scoring": "cosine"}, "scoring = 'cosine'"),
        ({"window": "middle"}, "window = 'middle'"),
        ({"scoring": "paper", "temperature": 0.1}, "temperature does nothing under"),
        ({"scoring": "paper", "top_k": 2}, "top_k does nothing under"),
        ({"scoring": "paper", "threshold": 0.2}, "threshold does nothing under"),
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"threshold": "0.2"}, "threshold = '0.2'"),
        ({"sharpening": 4.0}, "use scoring='paper'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(params: dict[str, Any], said: str) -> None:
    with pytest.raises(RouterInputError) as caught:
        SimilarityParams.parse(params)
    assert said in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(RouterInputError, match=r"'a'.*'b'.*temperature = -1"):
        SimilarityParams.parse({"a": 1, "b": 2, "temperature": -1.0})


def test_defaults_are_the_fast_ones() -> None:
    params = SimilarityParams.parse({})
    assert (params.scoring, params.temperature, params.window) == ("softmax", 0.1, "tail")
