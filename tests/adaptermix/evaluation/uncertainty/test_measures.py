"""Calibration and detection against counting by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from adaptermix.evaluation.uncertainty.measures import (
    AVERAGE,
    ENSEMBLE,
    INFORMATION,
    AnswerUncertainty,
    Question,
    auroc,
    calibration_error,
    estimate,
    measures_of,
    reliability,
    uncertainty_of,
)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    chance = np.random.default_rng(0)
    scores = chance.integers(0, 5, size=40).astype(float)  # with many ties
    kinds = chance.integers(0, 2, size=40).astype(float)
    pairs = list(product(scores[kinds > 0], scores[kinds == 0]))
    by_hand = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert auroc(scores, kinds) == pytest.approx(by_hand)
    assert auroc(kinds, kinds) == 1
    assert auroc(-kinds, kinds) == 0
    assert math.isnan(auroc(scores, np.zeros(40)))


def test_calibration_is_the_gap_of_each_bin() -> None:
    sure = np.array([0.95, 0.95, 1.0, 0.35, 0.31])
    right = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    bins = reliability(sure, right)
    assert [one["count"] for one in bins] == [2, 3]
    assert bins[1]["accuracy"] == pytest.approx(2 / 3)
    by_hand = (2 * abs(0.5 - 0.33) + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert calibration_error(sure, right) == pytest.approx(by_hand)
    assert calibration_error(np.ones(3), np.ones(3)) == 0


def test_an_interval_holds_its_value_and_narrows_with_rows() -> None:
    chance = np.random.default_rng(1)
    few, many = chance.normal(size=30), chance.normal(size=3000)
    one, two = (estimate(lambda v: float(v.mean()), values) for values in (few, many))
    assert one["low"] < one["mean"] < one["high"]
    assert two["high"] - two["low"] < (one["high"] - one["low"]) / 5
    nothing = estimate(auroc, few, np.zeros(30))
    assert nothing == {"mean": None, "low": None, "high": None}


def test_a_reply_becomes_probabilities_of_options() -> None:
    said = {"entropy": 1.5, "mutual_information": 0.25}
    scores = [
        {"logprob": math.log(p), "tokens": [{"uncertainty": said}, {"uncertainty": {}}]}
        for p in (0.1, 0.3)
    ]
    doubt = uncertainty_of({"scores": scores})
    assert doubt.options == pytest.approx([0.25, 0.75])
    assert (doubt.token_entropy, doubt.information) == (1.5, 0.25)
    assert doubt.option_entropy == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_scores_that_know_and_scores_that_do_not() -> None:
    """The ensemble's information is high on wrong answers and on other tasks; nothing else is."""
    chance = np.random.default_rng(2)
    questions, average, ensemble = [], [], []
    for number in range(200):
        is_other, is_wrong = number % 4 == 3, number % 2 == 1
        questions.append(Question("?", (" A", " B"), None if is_other else 0))
        first = 0.4 if is_wrong else 0.6
        noise = float(chance.uniform())
        average.append(AnswerUncertainty(np.array([first, 1 - first]), noise, math.nan))
        known = 2.0 + noise if is_other else 1.0 + noise / 2 if is_wrong else noise
        ensemble.append(AnswerUncertainty(np.array([first, 1 - first]), noise, known))
    found = measures_of(questions, {AVERAGE: average, ENSEMBLE: ensemble}, seed=0)
    assert found["ways"][AVERAGE]["rows"] == 150
    assert found["ways"][AVERAGE]["accuracy"]["mean"] == pytest.approx(2 / 3)
    for kind in ("wrong", "unfamiliar"):
        by_score = {(one["way"], one["score"]): one for one in found[kind]}
        best = by_score[ENSEMBLE, INFORMATION]
        assert best["mean"] == pytest.approx(1)
        assert best["to_average"]["low"] > 0.3
        other = by_score[ENSEMBLE, "entropy of the token"]
        assert 0.35 < other["mean"] < 0.65
