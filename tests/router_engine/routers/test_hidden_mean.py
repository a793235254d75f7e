"""What the router makes of scores, beside the function for one row that the others use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router_engine.errors import RouterError
from router_engine.request import TokenRouting
from router_engine.routers.base import HiddenQuestion
from router_engine.routers.scoring import weights_from_scores
from router_engine.routers.token.hidden_mean import (
    HiddenMeanParams,
    HiddenMeanRouter,
    weights_of_scores,
)

SCORES = np.random.default_rng(3).uniform(-1, 1, size=(40, 7)).astype(np.float32)
ROUTING = TokenRouting("hidden_mean", {"temperature": 0.5, "warmup": 0})


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
    parsed = HiddenMeanParams.model_validate(params)
    rows = weights_of_scores(SCORES, parsed)
    for row, scores in zip(rows, SCORES, strict=True):
        alone = weights_from_scores(scores.astype(np.float64), parsed)
        assert row.dense == pytest.approx(alone, abs=1e-12)
    assert any(not row.columns for row in rows) == ("threshold" in params)  # negative control


def test_of_equal_scores_the_earlier_candidate_stays() -> None:
    rows = weights_of_scores(np.ones((2, 4), np.float32), HiddenMeanParams(top_k=2))
    assert [row.dense for row in rows] == [(0.5, 0.5, 0, 0)] * 2


def test_requests_of_one_step_are_weighed_together_and_each_by_its_own_candidates() -> None:
    router = HiddenMeanRouter()
    centroids = np.random.default_rng(0).normal(size=(3, 5))
    squares = centroids**2 + np.arange(1, 6)
    vectors = np.concatenate((centroids, squares), axis=1)
    router.put({name: list(row) for name, row in zip("abc", vectors, strict=True)})
    groups = {"one": "abc", "two": "ab", "three": "abc"}
    for name, candidates in groups.items():
        assert router.begin(name, tuple(candidates), ROUTING).num_tokens is None
    means = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    questions = [HiddenQuestion(name, 9, mean) for name, mean in zip(groups, means, strict=True)]
    answers = {answer.request_id: answer for answer in router.weigh(questions)}
    for question in questions:
        size = len(groups[question.request_id])
        middle = centroids[:size].mean(axis=0)
        spread = np.sqrt(squares[:size].mean(axis=0) - middle**2)
        assert question.mean is not None
        e = (question.mean - middle) / spread
        rows = (centroids[:size] - middle) / spread
        scores = [e @ c / np.linalg.norm(e) / np.linalg.norm(c) for c in rows]
        expected = np.exp(np.array(scores) / 0.5)
        answer = answers[question.request_id]
        assert answer.num_tokens == 9
        assert answer.weights.dense == pytest.approx(expected / expected.sum(), abs=1e-5)


def test_without_states_the_prior_goes_on() -> None:
    router = HiddenMeanRouter()
    router.put({"a": [1.0, 0.0, 1.0, 0.0], "b": [0.0, 1.0, 0.0, 1.0]})
    router.begin("r", ("a", "b"), TokenRouting("hidden_mean", {"prior": "base", "warmup": 8}))
    (answer,) = router.weigh([HiddenQuestion("r", 1, None)])
    assert answer.weights.dense == (0.0, 0.0)
    router.end("r")
    with pytest.raises(RouterError, match="no centroid of c"):
        router.begin("s", ("a", "c"), ROUTING)
