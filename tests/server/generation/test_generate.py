"""The shapes of /generate and its stream, and that every field is applied."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live

FIXED = {"adapters": [{"name": "math", "weight": 0.7}, {"name": "code@1", "weight": 0.3}]}
REQUEST_ROUTED = {"router": {"name": "similarity", "candidates": ["math", "code", "wide"]}}
TOKEN_ROUTED = {
    "router": {
        "name": "similarity",
        "level": "token",
        "every": 2,
        "candidates": ["math", "code"],
        "scoring": "softmax",
        "temperature": 0.1,
        "top_k": 2,
        "context": "keep",
    }
}
MIXTURES: dict[str, Any] = {
    "base": None,
    "fixed": FIXED,
    "request": REQUEST_ROUTED,
    "token": TOKEN_ROUTED,
}


def parameters(**given: Any) -> dict[str, Any]:
    return {"max_new_tokens": 12, "ignore_eos_token": True, "details": True, **given}


def test_the_least_body_gets_the_text_and_nothing_else(live: Live) -> None:
    reply = live.answer(parameters={"max_new_tokens": 3})
    assert set(reply) == {"generated_text"}


def test_details_have_the_documented_shape(live: Live) -> None:
    reply = live.answer(parameters=parameters(), mixture=FIXED)
    details = reply["details"]
    assert details["finish_reason"] == "length"
    assert details["prompt_tokens"] == 5
    assert details["generated_tokens"] == len(details["tokens"]) == 12
    assert details["seed"] is None
    token = details["tokens"][0]
    assert set(token) == {"id", "text", "logprob", "special"}
    assert token["logprob"] < 0
    assert "".join(t["text"] for t in details["tokens"]) == reply["generated_text"]
    routing = details["routing"]
    assert routing.pop("entropy") == pytest.approx(0.610864)  # -0.7 ln 0.7 - 0.3 ln 0.3
    assert routing == {
        "adapters": ["math@1", "code@1"],
        "weights": [[0.7, 0.3]] * 12,
        "router": None,
        "level": "fixed",
        "switches": 0,
        "fallback": 0,
    }


def test_the_base_has_no_routing(live: Live) -> None:
    assert "routing" not in live.answer(parameters=parameters())["details"]


def test_a_mixture_changes_the_answer(live: Live) -> None:
    texts = {name: live.answer(parameters=parameters(), mixture=m) for name, m in MIXTURES.items()}
    assert len({reply["generated_text"] for reply in texts.values()}) > 1
    assert texts["base"]["generated_text"] != texts["fixed"]["generated_text"]


def test_adapter_id_is_a_mixture_of_one(live: Live) -> None:
    by_id = live.answer(parameters=parameters(adapter_id="math"))
    by_mixture = live.answer(parameters=parameters(), mixture={"adapters": [{"name": "math"}]})
    base = live.answer(parameters=parameters(adapter_id=""))
    assert by_id["generated_text"] == by_mixture["generated_text"]
    assert by_id["details"]["routing"]["adapters"] == ["math@1"]
    assert base["generated_text"] == live.answer(parameters=parameters())["generated_text"]


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_a_stream_says_what_the_whole_answer_says(live: Live, mixture: Any) -> None:
    body = {"parameters": parameters(temperature=0.9, seed=11), "mixture": mixture}
    whole = live.answer(**body)
    frames = live.frames(**body)
    assert "".join(frame["token"]["text"] for frame in frames) == whole["generated_text"]
    assert frames[-1]["generated_text"] == whole["generated_text"]
    assert [f["token"]["id"] for f in frames] == [t["id"] for t in whole["details"]["tokens"]]
    for frame in frames[:-1]:
        assert frame["generated_text"] is None
        assert frame["details"] is None
    last = frames[-1]["details"]
    assert last["finish_reason"] == "length"
    assert last["generated_tokens"] == 12
    assert last["seed"] == 11
    assert last.get("routing") == whole["details"].get("routing")


def test_stream_in_the_body_is_the_stream_route(live: Live) -> None:
    body = {"inputs": "hello", "stream": True, "parameters": parameters()}
    response = live.client.post("/generate", json=body)
    assert response.text.startswith("data: {")
    assert response.text.endswith("\n\n")


def test_the_root_route_answers_in_a_list(live: Live) -> None:
    response = live.client.post("/", json={"inputs": "hello", "parameters": {"max_new_tokens": 2}})
    assert [set(item) for item in response.json()] == [{"generated_text"}]


def test_token_routing_reports_weights_that_are_renewed_every_second_token(live: Live) -> None:
    asked = parameters(max_new_tokens=24, temperature=1.0, seed=3)
    weights = live.answer(parameters=asked, mixture=TOKEN_ROUTED)["details"]["routing"]["weights"]
    assert len(weights) == 24
    assert all(abs(sum(row) - 1) < 1e-5 for row in weights)
    assert all(weights[i] == weights[i + 1] for i in range(0, 24, 2))
    assert len({tuple(row) for row in weights}) > 1


def test_request_routing_depends_on_the_prompt_and_stays(live: Live) -> None:
    rows = []
    for prompt in ("math text 1", "wide text 2 and more of it"):
        reply = live.answer(prompt, parameters=parameters(), mixture=REQUEST_ROUTED)
        weights = reply["details"]["routing"]["weights"]
        assert all(row == weights[0] for row in weights)
        rows.append(weights[0])
    assert rows[0] != rows[1]


def test_paper_routing_runs(live: Live) -> None:
    spec = TOKEN_ROUTED["router"] | {
        "scoring": "paper",
        "combination": "linear",
        "context": "recompute",
        "every": 1,
    }
    del spec["temperature"], spec["top_k"]
    reply = live.answer(parameters=parameters(max_new_tokens=4), mixture={"router": spec})
    assert len(reply["details"]["routing"]["weights"]) == 4


def test_candidates_by_tag(live: Live, folders: dict[str, Any]) -> None:
    for name in ("tagged-a", "tagged-b"):
        folder = folders["math" if name.endswith("a") else "code"]
        assert live.publish(folder, name, tags="pair").status_code == 201
    spec = REQUEST_ROUTED["router"] | {"candidates": {"tag": "pair"}}
    reply = live.answer(parameters=parameters(max_new_tokens=1), mixture={"router": spec})
    assert reply["details"]["routing"]["adapters"] == ["tagged-a@1", "tagged-b@1"]
    for name in ("tagged-a", "tagged-b"):
        assert live.client.delete(f"/admin/adapters/{name}").status_code == 200


def test_a_seed_fixes_the_text_and_none_is_drawn_and_told(live: Live) -> None:
    sampled = {"temperature": 1.0, "top_k": 50, "top_p": 0.9}
    first = live.answer(parameters=parameters(**sampled, seed=5))
    again = live.answer(parameters=parameters(**sampled, seed=5))
    drawn = live.answer(parameters=parameters(do_sample=True))
    assert first["generated_text"] == again["generated_text"]
    seed = drawn["details"]["seed"]
    assert isinstance(seed, int)
    repeated = live.answer(parameters=parameters(do_sample=True, seed=seed))
    assert repeated["generated_text"] == drawn["generated_text"]


def test_alternatives_come_in_the_shape_that_was_asked_for(live: Live) -> None:
    tgi = live.answer(parameters=parameters(top_n_tokens=3, max_new_tokens=2))["details"]
    lorax = live.answer(parameters=parameters(return_k_alternatives=2, max_new_tokens=2))
    assert [len(top) for top in tgi["top_tokens"]] == [3, 3]
    assert tgi["top_tokens"][0][0]["id"] == tgi["tokens"][0]["id"]
    assert [len(t["alternative_tokens"]) for t in lorax["details"]["tokens"]] == [2, 2]


def test_full_text_truncation_and_chat_template(live: Live) -> None:
    full = live.answer(parameters={"max_new_tokens": 2, "return_full_text": True})
    assert full["generated_text"].startswith("hello")
    cut = live.answer("0123456789", parameters=parameters(truncate=4, max_new_tokens=1))
    short = live.answer("6789", parameters=parameters(max_new_tokens=1))
    assert cut["details"]["prompt_tokens"] == 4
    assert cut["generated_text"] == short["generated_text"]
    chat = live.answer("hi", parameters=parameters(apply_chat_template=True, max_new_tokens=1))
    assert chat["details"]["prompt_tokens"] > 10


def test_a_stop_string_cuts_the_text_in_both_forms(live: Live) -> None:
    text = live.answer(parameters=parameters(max_new_tokens=24))["generated_text"]
    stop = text[5:7]
    asked: dict[str, Any] = {"parameters": parameters(max_new_tokens=24, stop=[stop])}
    whole = live.answer(**asked)
    frames = live.frames(**asked)
    assert whole["generated_text"] == text[: text.index(stop)]
    assert whole["details"]["finish_reason"] == "stop_sequence"
    assert frames[-1]["generated_text"] == whole["generated_text"]
    assert "".join(frame["token"]["text"] for frame in frames) == whole["generated_text"]


def test_min_new_tokens_holds_a_stop_string_off(live: Live) -> None:
    text = live.answer(parameters=parameters(max_new_tokens=24))["generated_text"]
    asked = parameters(max_new_tokens=24, stop=[text[2:4]], min_new_tokens=20)
    assert live.answer(parameters=asked)["details"]["generated_tokens"] > 19


def test_the_default_length_fits_the_room_that_is_left(live: Live) -> None:
    room = 1024 - 1000
    reply = live.answer("x" * 1000, parameters={"details": True, "ignore_eos_token": True})
    assert reply["details"]["generated_tokens"] == room


def test_headers_tell_tokens_and_the_request_id(live: Live) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2, "ignore_eos_token": True}}
    response = live.client.post("/generate", json=body, headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-prompt-tokens"] == "5"
    assert response.headers["x-generated-tokens"] == "2"
    assert len(live.client.get("/health").headers["x-request-id"]) == 32
