"""details.routing and the routing of each streamed token, against numbers written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from router_engine.events import TokenEvent
from server.generation.answer_text import AnswerPiece
from server.generation.generation import Completion, Update
from server.generation.mixtures import PlannedMixture
from server.http.rendering import Renderer, routing_of
from server.schemas.generate import Parameters
from tests.server.generation.test_generate import MIXTURES
from tests.server.live import Live

ROWS = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0], [0.25, 0.75]]
GIVEN = {
    "router": {"name": "given", "level": "token", "candidates": ["math", "code"], "weights": ROWS}
}


def parameters(**given: Any) -> dict[str, Any]:
    return {"max_new_tokens": len(ROWS), "ignore_eos_token": True, "details": True, **given}


def test_entropy_and_switches_of_given_weights(live: Live) -> None:
    routing = live.answer(parameters=parameters(), mixture=GIVEN)["details"]["routing"]
    quarter, rest = -0.25 * math.log(0.25), -0.75 * math.log(0.75)
    assert routing.pop("entropy") == pytest.approx((0 + 0 + math.log(2) + 0 + quarter + rest) / 5)
    assert routing == {
        "adapters": ["math@1", "code@1"],
        "weights": ROWS,
        "router": "given",
        "level": "token",
        "switches": 4,  # math, code, math (the first of equals), the base, code
        "fallback": 1,
    }


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_without_weights_there_is_neither_entropy_nor_switches(num_tokens: int) -> None:
    """No tokens, or a router that reports no weights for them."""
    plan = PlannedMixture(labels=("math@1",), router="inner", level="layer")
    pieces = (AnswerPiece(TokenEvent("r", 7, -1.0), "x"),) * num_tokens
    routing = routing_of(Completion("x" * num_tokens, "eos_token", pieces, 5, 0, 2, plan))
    assert routing is not None
    assert routing.weights == []
    assert routing.entropy is None
    assert routing.switches is None
    assert routing.fallback is None


@pytest.mark.parametrize("name", ["fixed", "request", "token"])
def test_each_frame_carries_its_row(live: Live, name: str) -> None:
    body = {"parameters": parameters(max_new_tokens=12), "mixture": MIXTURES[name]}
    frames = live.frames(**body)
    routing = frames[-1]["details"]["routing"]
    assert len(frames) == 12
    assert [frame["routing"]["weights"] for frame in frames] == routing["weights"]
    assert routing == live.answer(**body)["details"]["routing"]
    assert routing["level"] == name


def test_frames_say_nothing_where_nothing_was_asked_or_no_adapter_acts(live: Live) -> None:
    without = live.frames(parameters=parameters(details=False), mixture=GIVEN)
    base = live.frames(parameters=parameters())
    assert len(without) == len(base) == 5
    for frame in (*without, *base):
        assert set(frame) == {"token", "generated_text", "details"}
    assert "routing" not in without[-1]["details"]


def test_the_end_of_text_token_has_no_row(live: Live) -> None:
    """Its frame closes the stream, and details.routing does not count it either."""
    plan = PlannedMixture(labels=("math@1",), weights=(0.5,))
    pieces = (AnswerPiece(TokenEvent("r", 7, -1.0), "x"),)
    tokenization = live.container.generation.tokenization
    renderer = Renderer(tokenization, Parameters(details=True), plan, None, "hello")
    update = Update(pieces, plan, Completion("x", "eos_token", pieces, 5, 0, 2, plan))
    token, end = (frame.model_dump() for frame in renderer.frames(update))
    assert token["routing"] == {"weights": [0.5]}
    assert "routing" not in end
    assert end["details"]["routing"]["weights"] == [[0.5]]


def test_the_openai_routes_give_the_same_routing(live: Live) -> None:
    native = live.answer(parameters=parameters(), mixture=GIVEN)["details"]["routing"]
    body = {
        "model": "tiny-random",
        "prompt": "hello",
        "max_tokens": len(ROWS),
        "temperature": 0,
        "ignore_eos": True,
        "mixture": GIVEN,
    }
    reply = live.client.post("/v1/completions", json={**body, "routing": True}).json()
    assert reply["choices"][0]["routing"] == native
    quiet = live.client.post("/v1/completions", json=body).json()
    assert "routing" not in quiet["choices"][0]
