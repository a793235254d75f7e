"""Weights that the request brings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights
from router_engine.routers.given import MAX_NUMBERS, GivenTokenRouter

ROWS = [[1.0, 0.0], [0.5, 0.5], [-0.25, 2.0]]


def begin(router: GivenTokenRouter, params: dict[str, Any]) -> None:
    router.begin("r", [5, 6, 7], ("a", "b"), TokenRouting("given", params))


def test_row_i_is_for_generated_token_i() -> None:
    woken: list[None] = []
    router = GivenTokenRouter(wake=lambda: woken.append(None))
    begin(router, {"weights": ROWS})
    router.extend("r", [8])
    router.extend("r", [9])
    assert list(router.poll()) == [
        RoutedWeights("r", 3 + i, tuple(row)) for i, row in enumerate(ROWS)
    ]
    assert len(woken) == 1  # for all that it polls at once
    assert list(router.poll()) == []


def test_rows_between_two_renewals_are_passed_over() -> None:
    router = GivenTokenRouter()
    begin(router, {"weights": ROWS})
    router.extend("r", [8, 9])
    assert router.poll()[1].weights == (-0.25, 2.0)


def test_a_token_beyond_the_last_row_is_an_error() -> None:
    router = GivenTokenRouter()
    begin(router, {"weights": ROWS[:1]})
    router.extend("r", [8])
    assert router.poll()[1].error == "weights has 1 rows; token 1 needs one more"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "weights"),
        ({"weights": []}, "weights = []"),
        ({"weights": [[1.0, 0.0], [1.0]]}, "weights.1 has 1 numbers for 2 candidates"),
        ({"weights": [[math.inf, 0.0]]}, "weights.0.0 = inf"),
        ({"weights": [["1", 1.0]]}, "weights.0.0 = '1'"),
        ({"weights": [[1.0, True]]}, "weights.0.1 = True"),
        ({"weights": [["a"] * MAX_NUMBERS]}, "weights.0.0 = 'a'"),
        ({"weights": ["a"] * MAX_NUMBERS}, "weights.0 = 'a'"),
        ({"weights": [[1.0] * MAX_NUMBERS, [1.0]]}, f"{MAX_NUMBERS + 1} numbers; at most"),
        ({"weights": [[]] * (MAX_NUMBERS + 1)}, f"at most {MAX_NUMBERS}"),
        ({"weights": "a" * 1_000_000}, "weights = 'aaa"),
        ({"weights": ROWS, "wieghts": 1}, "'wieghts'; did you mean weights?"),
    ],
)
def test_wrong_parameters_fail_the_request(params: dict[str, Any], said: str) -> None:
    router = GivenTokenRouter()
    begin(router, params)
    (answer,) = router.poll()
    assert said in str(answer.error)


def test_an_ended_request_is_forgotten() -> None:
    router = GivenTokenRouter()
    begin(router, {"weights": ROWS})
    router.poll()
    router.end("r")
    router.extend("r", [8])
    assert list(router.poll()) == []
    router.close()
