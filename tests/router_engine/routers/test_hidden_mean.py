"""What the router makes of the questions of one step."""

from __future__ import annotations

import numpy as np
import pytest

from router_engine.errors import RouterError
from router_engine.request import TokenRouting
from router_engine.routers.base import HiddenQuery
from router_engine.routers.hidden_mean import HiddenMeanRouter

ROUTING = TokenRouting("hidden_mean", {"temperature": 0.5, "warmup": 0})


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
    questions = [HiddenQuery(name, 9, mean) for name, mean in zip(groups, means, strict=True)]
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
    (answer,) = router.weigh([HiddenQuery("r", 1, None)])
    assert answer.weights.dense == (0.0, 0.0)
    router.end("r")
    with pytest.raises(RouterError, match="no centroid of c"):
        router.begin("s", ("a", "c"), ROUTING)
