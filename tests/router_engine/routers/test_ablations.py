"""`uniform` and `random`: equal weights, and draws that depend on seed and length alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights, TokenRouter
from router_engine.routers.errors import RouterInputError
from router_engine.routers.registry import RequestServices, RouterRegistry, TokenServices

NAMES = ("a", "b", "c")
SIMPLEX = {"draw": "simplex", "seed": 5}
Wake = Callable[[], None]


def nothing() -> None:
    return


def token_router(name: str, wake: Wake = nothing) -> TokenRouter:
    return RouterRegistry.discover().token_routers(TokenServices(wake))[name]


def by_request(
    name: str, params: Mapping[str, Any], text: str = "hello", count: int = 3
) -> tuple[float, ...]:
    router = RouterRegistry.discover().request_routers(RequestServices())[name]
    return asyncio.run(router.route(text, [str(i) for i in range(count)], params))


def by_tokens(
    name: str, params: Mapping[str, Any], prompt: int, renewals: int
) -> list[RoutedWeights]:
    router = token_router(name)
    router.begin("r", range(prompt), NAMES, TokenRouting(name, dict(params)))
    for _ in range(renewals):
        router.extend("r", [7])
    answers = list(router.poll())
    router.close()
    return answers


def test_uniform_is_one_over_k_at_both_levels() -> None:
    assert by_request("uniform", {}, count=4) == (0.25,) * 4
    answers = by_tokens("uniform", {}, prompt=5, renewals=2)
    assert answers == [RoutedWeights("r", 5 + i, (1 / 3,) * 3) for i in range(3)]


@pytest.mark.parametrize("params", [{"seed": 3}, SIMPLEX])
def test_random_draws_by_seed_and_number_of_tokens(params: dict[str, Any]) -> None:
    answers = by_tokens("random", params, prompt=4, renewals=9)
    assert [answer.num_tokens for answer in answers] == list(range(4, 14))
    for answer in answers:
        generator = np.random.default_rng((params["seed"], answer.num_tokens))
        if "draw" in params:
            expected = generator.dirichlet([1.0, 1.0, 1.0]).tolist()
        else:
            expected = np.eye(3)[generator.integers(3)].tolist()
        assert list(answer.weights) == expected
    assert len({answer.weights for answer in answers}) > 1
    # The same text length has the same draw, wherever the prompt ended.
    assert by_tokens("random", params, prompt=9, renewals=4) == answers[5:]


@pytest.mark.parametrize("draw", ["one", "simplex"])
def test_random_of_a_request_depends_on_the_seed_alone(draw: str) -> None:
    drawn = {by_request("random", {"seed": seed, "draw": draw}) for seed in range(40)}
    assert len(drawn) == (3 if draw == "one" else 40)
    for weights in drawn:
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
    assert by_request("random", {"draw": draw}, "x") == by_request("random", {"draw": draw}, "y")


def test_the_simplex_is_drawn_from_evenly() -> None:
    """Under Dirichlet(1, 1, 1) each weight has mean 1/3 and variance 1/18."""
    drawn = np.array([by_request("random", {"draw": "simplex", "seed": s}) for s in range(600)])
    assert drawn.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.04)
    assert drawn.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.015)


def test_two_requests_do_not_mix() -> None:
    woken: list[None] = []
    router = token_router("random", lambda: woken.append(None))
    for name, length in (("r", 3), ("s", 8)):
        router.begin(name, range(length), NAMES, TokenRouting("random", SIMPLEX))
    router.extend("s", [1])
    router.extend("r", [1])
    answers = list(router.poll())
    assert [(one.request_id, one.num_tokens) for one in answers] == [
        ("r", 3),
        ("s", 8),
        ("s", 9),
        ("r", 4),
    ]
    assert answers[3].weights == by_tokens("random", SIMPLEX, prompt=4, renewals=0)[0].weights
    assert len(woken) == 1  # for all that it polls at once
    router.end("r")
    router.extend("r", [1])
    assert list(router.poll()) == []
    router.close()


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("uniform", {"k": 2}, "takes no parameter 'k'"),
        ("random", {"sede": 2}, "'sede'; did you mean seed?"),
        ("random", {"seed": -1}, "seed = -1"),
        ("random", {"seed": 1.5}, "seed = 1.5"),
        ("random", {"seed": True}, "seed = True"),
        ("random", {"seed": 2**63}, f"seed = {2**63}"),
        ("random", {"draw": "two"}, "draw = 'two'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(RouterInputError) as caught:
        RouterRegistry.discover().get(name).check("token", params)
    assert said in str(caught.value)
    with pytest.raises(RouterInputError):
        by_request(name, params)
    (answer,) = by_tokens(name, params, prompt=2, renewals=1)
    assert said in str(answer.error)
