"""Bad input: the status, and an error that names the field, the value and what would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_engine.events import FinalEvent, FinishReason
from server.generation.generation import failure_of
from server.http.error_replies import describe
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder, save_family


def adapters(*items: Any, **extra: Any) -> dict[str, Any]:
    return {"mixture": {"adapters": list(items), **extra}}


def router(**spec: Any) -> dict[str, Any]:
    given = {"name": "similarity", "candidates": ["math", "code"]} | spec
    return {"mixture": {"router": given}}


MATH = {"name": "math"}

VALIDATION: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown field": ({"inptus": "x"}, ["inptus", "inputs"]),
    "unknown parameter": (
        {"parameters": {"max_new_tokns": 3}},
        ["parameters.max_new_tokns", "max_new_tokens"],
    ),
    "unknown mixture field": (adapters(MATH, weihgts=1), ["mixture.weihgts"]),
    "range": ({"parameters": {"temperature": -1}}, ["parameters.temperature", "-1", "0"]),
    "type": ({"parameters": {"seed": "x"}}, ["parameters.seed", "'x'"]),
    "merged_adapters": (
        {"parameters": {"merged_adapters": {"ids": ["a"]}}},
        ["parameters.merged_adapters", "not supported"],
    ),
    "watermark": ({"parameters": {"watermark": True}}, ["parameters.watermark", "True", "False"]),
    "api_token": ({"parameters": {"api_token": "t"}}, ["parameters.api_token"]),
    "best_of": ({"parameters": {"best_of": 2}}, ["parameters.best_of", "2"]),
    "adapter_source": ({"parameters": {"adapter_source": "hub"}}, ["adapter_source", "'hub'"]),
    "prefill": ({"parameters": {"decoder_input_details": True}}, ["decoder_input_details"]),
    "greedy and sampled": (
        {"parameters": {"do_sample": True, "temperature": 0}},
        ["do_sample", "temperature"],
    ),
    "alternatives without details": ({"parameters": {"top_n_tokens": 2}}, ["details"]),
    "empty stop": ({"parameters": {"stop": [""]}}, ["parameters.stop.0", "''"]),
    "empty mixture": (adapters(), ["mixture", "empty"]),
    "no mixture kind": ({"mixture": {}}, ["exactly one of adapters and router"]),
    "both kinds": (
        {"mixture": {"adapters": [MATH], "router": {"name": "x", "candidates": []}}},
        ["exactly one of adapters and router"],
    ),
    "mixture and adapter_id": (
        adapters(MATH) | {"parameters": {"adapter_id": "math"}},
        ["adapter_id", "mixture"],
    ),
    "same adapter twice": (adapters(MATH, {"name": "math@1"}), ["'math@1'", "same adapter"]),
    "no reference": (adapters({"name": "../x"}), ["'../x'", "name@version"]),
    "linear with a negative weight": (
        adapters({"name": "math", "weight": -1}, combination="linear"),
        ["mixture.adapters.0.weight", "-1", "sum"],
    ),
    "linear with unequal ranks": (
        adapters(MATH, {"name": "wide"}, combination="linear"),
        ["math@1 of rank 4", "wide@1 of rank 8", "sum"],
    ),
    "unknown combination": (adapters(MATH, combination="ties"), ["combination", "'ties'", "sum"]),
    "unknown router": (router(name="similarty"), ["'similarty'", "similarity"]),
    "unknown router parameter": (router(temprature=1), ["'temprature'", "temperature"]),
    "router parameter of a wrong value": (router(temperature=0), ["temperature", "0"]),
    "no candidates": (router(candidates=[]), ["mixture.router.candidates"]),
    "unknown tag": (router(candidates={"tag": "zzz"}), ["candidates.tag", "'zzz'"]),
    "too many candidates": (router(candidates=["math"] * 65), ["65", "64", "MAX_CANDIDATES"]),
    "every at level request": (router(every=2), ["every", "level token"]),
    "paper with sum": (router(scoring="paper"), ["paper", "linear"]),
    "paper that keeps": (
        router(scoring="paper", combination="linear", level="token"),
        ["paper", "recompute"],
    ),
    "too long an answer": (
        {"parameters": {"max_new_tokens": 1020}},
        ["max_new_tokens", "1020", "5 tokens", "1024"],
    ),
    "min above max": (
        {"parameters": {"max_new_tokens": 2, "min_new_tokens": 3}},
        ["min_new_tokens", "max_new_tokens"],
    ),
}


@pytest.mark.parametrize(("body", "words"), VALIDATION.values(), ids=VALIDATION)
def test_validation(live: Live, body: dict[str, Any], words: list[str]) -> None:
    response = live.client.post("/generate", json={"inputs": "hello", **body})
    reply = response.json()
    assert response.status_code == 422, reply
    assert reply["error_type"] == "validation"
    assert reply["error"].startswith("Input validation error: ")
    for word in words:
        assert word in reply["error"]


def test_a_prompt_that_is_too_long_is_told_both_lengths(live: Live) -> None:
    response = live.generate("x" * 1500)
    assert response.status_code == 422
    assert "1500 tokens" in response.json()["error"]
    assert "1024 tokens" in response.json()["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(live: Live, number: str) -> None:
    body = f'{{"inputs":"x","mixture":{{"adapters":[{{"name":"math","weight":{number}}}]}}}}'
    headers = {"Content-Type": "application/json"}
    response = live.client.post("/generate", content=body, headers=headers)
    assert response.status_code == 422
    assert "mixture.adapters.0.weight" in response.json()["error"]


def test_an_unknown_adapter_is_404_with_near_names(live: Live) -> None:
    for body in ({"parameters": {"adapter_id": "maht"}}, adapters({"name": "maht"})):
        response = live.generate(**body)
        assert response.status_code == 404
        assert response.json() == {
            "error": "adapter 'maht' does not exist; near names: math",
            "error_type": "not_found",
        }
    assert live.generate(parameters={"adapter_id": "math@9"}).status_code == 404
    assert live.generate(parameters={"adapter_id": "sha256:" + "0" * 64}).status_code == 404


@pytest.mark.parametrize("content", [b"{", b'"x"', b""])
def test_a_body_that_is_no_object_is_refused(live: Live, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = live.client.post("/generate", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


def test_unknown_routes_and_methods_have_the_same_shape(live: Live) -> None:
    assert live.client.get("/nowhere").json()["error_type"] == "not_found"
    assert live.client.get("/generate").json()["error_type"] == "method_not_allowed"
    assert set(live.client.get("/v1/nowhere").json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }


def test_a_streamed_request_is_refused_before_its_stream(live: Live) -> None:
    body = {"inputs": "x", "parameters": {"adapter_id": "maht"}}
    response = live.client.post("/generate_stream", json=body)
    assert response.status_code == 404
    assert response.json()["error_type"] == "not_found"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for another base model."""
    return make_lora_folder(
        tmp_path_factory.mktemp("foreign") / "gpt",
        family="gpt2",
        targets=["c_attn"],
        options={"fan_in_fan_out": True},
    )


def test_an_adapter_for_another_base_is_refused_at_publish(live: Live, foreign: Path) -> None:
    response = live.publish(foreign, "gpt")
    assert response.status_code == 422
    assert response.json()["error_type"] == "invalid_adapter"
    assert "c_attn" in response.json()["error"]


def test_a_stored_adapter_of_another_base_is_refused_by_name(foreign: Path, tmp_path: Path) -> None:
    base = save_family(tmp_path / "gpt-base", "gpt2")
    store = tmp_path / "store"
    with serving(tiny_settings(tmp_path, model=str(base), store=store)) as server:
        assert server.publish(foreign, "gpt").status_code == 201
        assert server.generate(parameters={"adapter_id": "gpt"}).status_code == 200
    with serving(tiny_settings(tmp_path, store=store)) as server:
        response = server.generate(parameters={"adapter_id": "gpt"})
        assert response.status_code == 422
        assert "another base model" in response.json()["error"]
        names = [card["id"] for card in server.client.get("/v1/models").json()["data"]]
        assert names == ["tiny-random"]


def test_similarity_without_an_encoder_says_so(bare: Live, folders: dict[str, Path]) -> None:
    assert bare.publish(folders["math"], "math").status_code == 201
    response = bare.generate(**router(candidates=["math"]))
    assert response.status_code == 422
    assert "ADAPTERMIX_ENCODER" in response.json()["error"]


def test_an_adapter_without_texts_cannot_be_routed_to(
    live: Live, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["math"].iterdir():
        if file.name != "texts.jsonl":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert live.publish(tmp_path, "mute").status_code == 201
    response = live.generate(**router(candidates=["math", "mute"]))
    assert live.client.delete("/admin/adapters/mute").status_code == 200
    assert response.status_code == 422
    assert "mute@1" in response.json()["error"]
    assert "texts" in response.json()["error"]


FAILURES = {
    FinishReason.REFUSED: (422, "validation"),
    FinishReason.FAILED: (424, "generation"),
    FinishReason.ROUTER_AWAY: (503, "router_unavailable"),
    FinishReason.CANCELLED: (503, "cancelled"),
    FinishReason.ENGINE_DIED: (503, "engine_died"),
}


@pytest.mark.parametrize(
    "reason", sorted(set(FinishReason) - {FinishReason.LENGTH, FinishReason.STOP_TOKEN})
)
def test_every_way_to_fail_is_told_apart(reason: FinishReason) -> None:
    failure = describe(failure_of(FinalEvent("r", reason, error="it is so")))
    assert (failure.status, failure.error_type) == FAILURES[reason]
