"""Every router through the server: levels, parameters, and the base below a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live import Live

ASKED = {"max_new_tokens": 6, "ignore_eos_token": True, "details": True}
NAMES = ["math", "code", "wide"]
FALLBACK = "adaptermix_routing_fallback_tokens_total"


def routed(live: Live, name: str, inputs: str = "hello", **spec: Any) -> dict[str, Any]:
    router = {"name": name, "candidates": NAMES, **spec}
    return live.answer(inputs, parameters=ASKED, mixture={"router": router})


def routing(live: Live, name: str, inputs: str = "hello", **spec: Any) -> dict[str, Any]:
    return dict(routed(live, name, inputs, **spec)["details"]["routing"])


def fallen(live: Live, router: str, level: str) -> float:
    wanted = {"router": router, "level": level}
    text = live.client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == FALLBACK and sample.labels == wanted
    )


@pytest.mark.parametrize(
    ("name", "level"),
    [("similarity", "request"), ("similarity", "token"), ("retrieval", "request")],
)
def test_below_the_threshold_the_base_answers_and_says_so(
    live: Live, name: str, level: str
) -> None:
    """1 is above the cosine of any two texts that differ; -1 is below all."""
    before = fallen(live, name, level)
    base = live.answer(parameters=ASKED)
    below = routed(live, name, level=level, threshold=1.0)
    assert below["generated_text"] == base["generated_text"]
    found = below["details"]["routing"]
    assert found["weights"] == [[0.0] * 3] * 6
    assert found["fallback"] == 6
    assert fallen(live, name, level) == before + 6
    above = routed(live, name, level=level, threshold=-1.0)
    without = routed(live, name, level=level)
    assert above == without
    assert above["details"]["routing"]["fallback"] == 0
    assert above["generated_text"] != base["generated_text"]  # negative control
    assert fallen(live, name, level) == before + 6


def test_some_tokens_may_fall_back_and_others_not(live: Live) -> None:
    """A threshold between the cosines of the texts that grow is passed on the way."""
    counts = {
        step / 200: routing(live, "similarity", level="token", threshold=step / 200)["fallback"]
        for step in range(100, 200, 4)
    }
    assert sorted(counts.values()) == [counts[threshold] for threshold in sorted(counts)]
    assert any(0 < count < 6 for count in counts.values()), counts


def test_a_stream_and_openai_s_route_say_so_too(live: Live) -> None:
    router = {"name": "similarity", "candidates": NAMES, "threshold": 1.0}
    frames = live.frames(parameters=ASKED, mixture={"router": router})
    assert frames[-1]["details"]["routing"]["fallback"] == 6
    body = {
        "model": "tiny-random",
        "prompt": "hello",
        "max_tokens": 3,
        "ignore_eos": True,
        "temperature": 0,
        "mixture": {"router": router},
        "routing": True,
    }
    reply = live.client.post("/v1/completions", json=body).json()
    assert reply["choices"][0]["routing"]["fallback"] == 3


def test_retrieval_prefers_the_adapter_of_a_text(live: Live) -> None:
    for index, name in enumerate(NAMES):
        found = routing(live, "retrieval", f"{name} text 2", k=1)
        assert found["adapters"] == [f"{one}@1" for one in NAMES]
        assert found["weights"] == [[float(i == index) for i in range(3)]] * 6
    wide = routing(live, "retrieval", "wide text 2", k=12, weighting="uniform", top_k=2)
    assert sorted(wide["weights"][0]) == [0.0, 0.5, 0.5]
    soft = routing(live, "retrieval", "wide text 2", k=12)
    assert soft["weights"][0][2] == max(soft["weights"][0])
    assert sum(soft["weights"][0]) == pytest.approx(1)


def test_the_ablations_need_no_encoder(bare: Live, folders: dict[str, Any]) -> None:
    for name in NAMES:
        assert bare.publish(folders[name], name).status_code == 201
    third = pytest.approx(1 / 3)
    for spec in ({"level": "request"}, {"level": "token", "every": 2}):
        assert routing(bare, "uniform", **spec)["weights"] == [[third] * 3] * 6
    drawn = routing(bare, "random", seed=4, draw="simplex")["weights"]
    expected = np.random.default_rng((4, 0)).dirichlet([1, 1, 1]).tolist()
    assert drawn == [pytest.approx(expected)] * 6
    ones = routing(bare, "random", level="token", seed=4)["weights"]
    for position, row in enumerate(ones):
        chosen = np.random.default_rng((4, 5 + position)).integers(3)
        assert row == np.eye(3)[chosen].tolist()
    levels = {r["name"]: r["levels"] for r in bare.client.get("/admin/routers").json()["routers"]}
    assert levels == {
        "uniform": ["request", "token"],
        "random": ["request", "token"],
        "given": ["token"],
        "hidden_mean": ["token"],
        "arrow": ["layer"],
        "retrieval": [],
        "similarity": [],
    }
    refused = bare.generate(mixture={"router": {"name": "retrieval", "candidates": NAMES}})
    assert refused.status_code == 422
    assert "ADAPTERMIX_ENCODER" in refused.json()["error"]


def test_every_router_is_listed_with_its_schema(live: Live) -> None:
    routers = {r["name"]: r for r in live.client.get("/admin/routers").json()["routers"]}
    properties = {
        name: set(router["parameters"].get("properties", {})) for name, router in routers.items()
    }
    assert properties["uniform"] == set()
    assert properties["random"] == {"seed", "draw"}
    assert properties["given"] == {"weights"}
    cosine = {"temperature", "top_k", "threshold", "window"}
    assert properties["similarity"] == cosine | {"scoring", "sharpening"}
    assert properties["retrieval"] == cosine | {"k", "weighting"}
    assert routers["retrieval"]["levels"] == ["request"]
    for router in routers.values():
        assert router["parameters"]["additionalProperties"] is False
        for schema in router["parameters"].get("properties", {}).values():
            assert schema["description"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "similarity", "threshold": 1.5}, ["threshold", "1.5"]),
        (
            {"name": "similarity", "scoring": "paper", "combination": "linear", "threshold": 0.1},
            ["threshold does nothing", "paper"],
        ),
        ({"name": "retrieval", "level": "token"}, ["retrieval", "level request"]),
        ({"name": "retrieval", "k": 0}, ["k = 0"]),
        ({"name": "retrieval", "neighbors": 3}, ["'neighbors'", "it takes"]),
        ({"name": "retrieval", "weighting": "uniform", "temperature": 1.0}, ["temperature"]),
        ({"name": "uniform", "temperature": 1.0}, ["'temperature'", "it takes: none"]),
        ({"name": "random", "seed": -1}, ["seed = -1"]),
        ({"name": "random", "draw": "all"}, ["draw = 'all'", "simplex"]),
    ],
)
def test_bad_parameters_are_refused_by_name(
    live: Live, spec: dict[str, Any], words: list[str]
) -> None:
    response = live.generate(mixture={"router": {"candidates": ["math", "code"], **spec}})
    assert response.status_code == 422, response.text
    for word in words:
        assert word in response.json()["error"]


def test_hidden_mean_is_routed_by_the_states_of_the_text(live: Live) -> None:
    found = routing(live, "hidden_mean", level="token", temperature=0.05)
    assert (found["router"], found["level"]) == ("hidden_mean", "token")
    weights = np.array(found["weights"])
    assert weights.shape == (6, 3)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert np.ptp(weights, axis=0).max() > 1e-4  # they move with the text
    again = routing(live, "hidden_mean", level="token", temperature=0.05)
    assert np.array(again["weights"]) == pytest.approx(weights, abs=1e-5)
    other = routing(live, "hidden_mean", "another text", level="token", temperature=0.05)
    assert np.array(other["weights"]) != pytest.approx(weights, abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"level": "request"}, "works at level token"),
        ({"lag": 1}, "leave lag out"),
        ({"context": "recompute"}, "context keep"),
        ({"heat": 1}, "takes no parameter 'heat'"),
    ],
)
def test_what_hidden_mean_does_not_take_is_refused(
    changed: dict[str, Any], words: str, live: Live
) -> None:
    router = {"name": "hidden_mean", "level": "token", "candidates": NAMES, **changed}
    response = live.generate(mixture={"router": router})
    assert response.status_code == 422
    assert words in response.text
