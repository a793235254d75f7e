"""A router inside the layers, from the body of a request to its answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_metrics import increase, samples

ARROW: dict[str, Any] = {
    "name": "arrow",
    "level": "layer",
    "candidates": ["math", "code", "wide"],
    "top_k": 2,
    "temperature": 0.5,
}
ASKED = {"max_new_tokens": 12, "ignore_eos_token": True, "details": True}


def _answer(live: Live, **spec: Any) -> dict[str, Any]:
    return live.answer(parameters=ASKED, mixture={"router": ARROW | spec})


def test_a_request_is_served_and_reports_no_invented_weights(live: Live) -> None:
    reply = _answer(live)
    assert reply["details"]["generated_tokens"] == 12
    assert reply["details"]["routing"] == {
        "router": "arrow",
        "level": "layer",
        "adapters": ["math@1", "code@1", "wide@1"],
        "weights": [],
        "entropy": None,
        "switches": None,
        "fallback": None,
    }
    frames = live.frames(parameters=ASKED, mixture={"router": ARROW})
    assert frames[-1]["generated_text"] == reply["generated_text"]
    assert frames[-1]["details"]["routing"] == reply["details"]["routing"]


def test_parameters_and_candidates_are_applied(live: Live) -> None:
    names = ("math", "code", "wide")
    uniform = {"adapters": [{"name": name, "weight": 1 / 3} for name in names]}
    replies = [
        _answer(live),
        _answer(live, top_k=1),
        _answer(live, temperature=20),
        _answer(live, candidates=["math", "code"]),
        live.answer(parameters=ASKED, mixture=uniform),
        live.answer(parameters=ASKED),
    ]
    firsts = [reply["details"]["tokens"][0]["logprob"] for reply in replies]
    assert len(set(firsts)) == len(firsts)
    tagless = {key: ARROW[key] for key in ("name", "level", "candidates")}
    by_default = live.answer(parameters=ASKED, mixture={"router": tagless})
    assert (
        by_default["details"]["tokens"]
        == _answer(live, top_k=3, temperature=1.0)["details"]["tokens"]
    )


def test_openai_s_route_takes_it_too(live: Live) -> None:
    body = {
        "model": "tiny-random",
        "prompt": "hello",
        "max_tokens": 4,
        "temperature": 0,
        "mixture": {"router": ARROW},
        "routing": True,
    }
    (choice,) = live.client.post("/v1/completions", json=body).json()["choices"]
    assert choice["routing"]["level"] == "layer"
    assert choice["routing"]["weights"] == []


def test_metrics_count_the_request_and_invent_no_weights(live: Live) -> None:
    _answer(live)
    before = samples(live)
    _answer(live)
    assert increase(live, "adaptermix_generated_tokens_total", before) == 12
    for name, labels in (
        ("adaptermix_routing_entropy_nats_count", {"router": "arrow", "level": "layer"}),
        ("adaptermix_adapter_weight_mass_total", {"adapter": "math"}),
    ):
        assert increase(live, name, before, **labels) == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"every": 2}, ["every", "level token"]),
        ({"context": "keep"}, ["context", "level token"]),
        ({"combination": "linear"}, ["combination linear", "sum"]),
        ({"use_gks": True}, ["'use_gks'", "top_k, temperature"]),
        ({"top_k": 0}, ["top_k = 0"]),
        ({"temperature": -1}, ["temperature = -1"]),
        ({"level": "token"}, ["'arrow' works at level layer, not 'token'"]),
        ({"level": "layers"}, ["mixture.router.level", "'layer'"]),
        ({"candidates": []}, ["mixture.router.candidates"]),
    ],
)
def test_what_does_not_apply_is_refused_by_name(
    live: Live, spec: dict[str, Any], words: list[str]
) -> None:
    response = live.generate(mixture={"router": ARROW | spec})
    assert response.status_code == 422, response.text
    for word in words:
        assert word in response.json()["error"]


def test_similarity_does_not_work_inside_the_layers(live: Live) -> None:
    spec = {"name": "similarity", "level": "layer", "candidates": ["math"]}
    response = live.generate(mixture={"router": spec})
    assert response.status_code == 422
    assert "works at level request or token, not 'layer'" in response.json()["error"]


def test_it_is_listed_with_its_parameters(live: Live, bare: Live) -> None:
    """It needs no encoder."""
    for server in (live, bare):
        listed = server.client.get("/admin/routers").json()["routers"]
        (arrow,) = [router for router in listed if router["name"] == "arrow"]
        assert arrow["levels"] == ["layer"]
        assert arrow["needs_encoder"] is False
        assert set(arrow["parameters"]["properties"]) == {"top_k", "temperature"}
        assert "arrow" in server.client.get("/info").json()["routers"]
