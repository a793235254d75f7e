"""Lengths and adapters that fit what there is, KV blocks and memory, on every route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import Live, serving, tiny_settings
from tests.support.expert_adapters import Layers, make_expert_folder

BLOCKS, BLOCK_SIZE = 4, 16
ROOM = BLOCKS * BLOCK_SIZE + 1  # the last token needs no KV
FOUR = 14_848  # bytes of an adapter of rank 4, `math` or `code`
MEMORY = 2 * FOUR
TEXT = "x"
Asked = tuple[str, dict[str, Any]]  # a path, a body


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Live]:
    """A server whose KV cache holds less than a default answer; it has memory for one `wide`."""
    settings = tiny_settings(
        tmp_path_factory.mktemp("narrow"),
        kv_blocks=BLOCKS,
        block_size=BLOCK_SIZE,
        default_max_new_tokens=128,
        adapter_memory=MEMORY,
        adapters=folders["math"].parent,
    )
    with serving(settings) as server:
        yield server


def _generate(length: int) -> Asked:
    return "/generate", {
        "inputs": TEXT * length,
        "parameters": {"ignore_eos_token": True, "details": True},
    }


def _completion(length: int) -> Asked:
    return "/v1/completions", {
        "model": "tiny-random",
        "prompt": TEXT * length,
        "ignore_eos": True,
    }


def _chat(length: int) -> Asked:
    return "/v1/chat/completions", {
        "model": "tiny-random",
        "messages": [{"role": "user", "content": TEXT * length}],
        "ignore_eos": True,
    }


def _post(server: Live, asked: Asked) -> httpx.Response:
    path, body = asked
    return server.client.post(path, json=body)


def _lengths(answer: dict[str, Any]) -> tuple[int, int, str]:
    """Tokens of the prompt, of the answer, and why it ended."""
    if "usage" in answer:
        usage, choice = answer["usage"], answer["choices"][0]
        return usage["prompt_tokens"], usage["completion_tokens"], choice["finish_reason"]
    details = answer["details"]
    return details["prompt_tokens"], details["generated_tokens"], details["finish_reason"]


@pytest.mark.parametrize("make", [_generate, _completion, _chat])
@pytest.mark.parametrize("length", [1, 10, 30])
def test_an_answer_without_a_length_is_as_long_as_fits(
    length: int, make: Any, narrow: Live
) -> None:
    response = _post(narrow, make(length))
    assert response.status_code == 200, response.text
    prompt, generated, reason = _lengths(response.json())
    assert reason == "length"
    assert prompt + generated == ROOM


@pytest.mark.parametrize("make", [_generate, _completion])
def test_a_prompt_at_the_limit_still_has_one_token_of_answer(make: Any, narrow: Live) -> None:
    extra = _lengths(_post(narrow, make(1)).json())[0] - 1  # tokens beside those of the text
    longest = ROOM - 1 - extra
    assert _lengths(_post(narrow, make(longest)).json())[:2] == (ROOM - 1, 1)
    refused = _post(narrow, make(longest + 1))
    assert refused.status_code == 422
    assert "the KV cache holds no more (ADAPTERMIX_KV_MEMORY)" in refused.text


def test_a_length_that_does_not_fit_is_refused_with_the_one_that_does(narrow: Live) -> None:
    parameters = {"max_new_tokens": ROOM, "ignore_eos_token": True}
    refused = narrow.generate(TEXT, parameters=parameters)
    assert refused.status_code == 422
    most = int(refused.json()["error"].rsplit("use at most ", 1)[1])
    narrow.answer(TEXT, parameters=parameters | {"max_new_tokens": most})
    least = narrow.generate(TEXT, parameters={"min_new_tokens": ROOM})
    assert least.status_code == 422
    assert "min_new_tokens" in least.text
    narrow.answer(TEXT, parameters={"min_new_tokens": most})


def test_a_score_that_does_not_fit_is_refused(narrow: Live) -> None:
    body = {"inputs": TEXT, "completions": ["y" * ROOM]}
    refused = narrow.client.post("/score", json=body)
    assert refused.status_code == 422
    assert "the KV cache holds no more" in refused.text


# The largest that has room, and the next.
KINDS = {
    "bottleneck": [Layers(parallel=size, biases=False) for size in (28, 29)],
    "bottleneck with biases": [Layers(parallel=size) for size in (27, 28)],
    "serial bottleneck": [Layers(serial=size) for size in (27, 28)],
    "prompt": [Layers(prompt=size) for size in (38, 39)],
    "loras on one module": [
        Layers(targets=("q_proj",), rank=rank, per_target=3, router="linear") for rank in (8, 9)
    ],
    "copies": [Layers(targets=("q_proj",), rank=rank, copies=3) for rank in (28, 29)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_only_what_has_room_is_published(
    kind: str, narrow: Live, tmp_path: Path
) -> None:
    fits, excess = (
        make_expert_folder(tmp_path / str(index), layers)
        for index, layers in enumerate(KINDS[kind])
    )
    name = kind.replace(" ", "-")
    published = narrow.publish(fits, name)
    assert published.status_code == 201, published.text
    narrow.answer(mixture={"adapters": [{"name": name}]})
    told = narrow.upload("/admin/adapters/check", fits, name).json()["device_bytes"]
    loaded = narrow.client.post(f"/admin/adapters/{name}/load").json()
    assert loaded["device_bytes"] == told <= MEMORY
    refused = narrow.publish(excess, name)
    assert refused.status_code == 422
    assert f"bytes on the device, which has {MEMORY:,} for adapters" in refused.text
    assert narrow.upload("/admin/adapters/check", excess, name).json()["device_bytes"] > MEMORY


def test_a_mixture_that_never_has_room_is_refused_at_once(narrow: Live) -> None:
    """Whoever chooses the weights, all candidates have to be on the device; a merge as well."""
    both = ["math", "wide"]
    mixtures = [
        {"adapters": [{"name": name} for name in both]},
        {"router": {"name": "uniform", "candidates": both}},
        {"router": {"name": "uniform", "level": "token", "candidates": both}},
    ]
    for mixture in mixtures:
        refused = narrow.generate(mixture=mixture)
        assert refused.status_code == 422, refused.text
        assert f"need {FOUR + 29_184:,} bytes on the device" in refused.text
        assert f"{MEMORY:,} for adapters (ADAPTERMIX_ADAPTER_MEMORY): use fewer" in refused.text
    chat = {"messages": [{"role": "user", "content": TEXT}], "mixture": mixtures[0]}
    refused = narrow.client.post("/v1/chat/completions", json={"model": "tiny-random", **chat})
    assert refused.status_code == 422
    merge = narrow.client.put("/admin/merged", json=mixtures[0])
    assert merge.status_code == 422
    assert f"need {FOUR + 29_184:,} bytes" in merge.text
    narrow.answer(mixture={"adapters": [{"name": "math"}, {"name": "code"}]})


def test_what_pins_leave_no_room_for_is_told_so_at_once(narrow: Live) -> None:
    pinned = narrow.client.post("/admin/adapters/wide/pin")
    assert pinned.status_code == 200, pinned.text
    try:
        refused = narrow.generate(mixture={"adapters": [{"name": "math"}]})
        assert refused.status_code == 422
        assert "pinned and merged adapters keep 29,184: unpin some" in refused.text
        loaded = narrow.client.post("/admin/adapters/math/load")
        assert loaded.status_code == 422, loaded.text
        narrow.answer(mixture={"adapters": [{"name": "wide"}]})
    finally:
        narrow.client.post("/admin/adapters/wide/pin", json={"pinned": False})
    narrow.answer(mixture={"adapters": [{"name": "math"}]})


@pytest.mark.parametrize("weight", [1e4, 1e6, 1e38])
def test_a_merge_that_would_change_other_answers_is_refused(weight: float, narrow: Live) -> None:
    before = narrow.answer(TEXT)
    body = {"adapters": [{"name": "math", "weight": weight}]}
    refused = narrow.client.put("/admin/merged", json=body)
    assert refused.status_code == 422
    assert f"math at weight {weight:g}" in refused.json()["error"]
    assert "1e-04 is allowed in float32" in refused.json()["error"]
    assert "send the mixture with each request" in refused.json()["error"].lower()
    assert narrow.client.get("/admin/merged").json()["mode"] == "unmerged"
    assert narrow.answer(TEXT)["generated_text"] == before["generated_text"]


def test_a_merge_at_weight_0_says_that_nothing_is_merged(narrow: Live) -> None:
    body = {"adapters": [{"name": "math", "weight": 0}, {"name": "code", "weight": 0.0}]}
    state = narrow.client.put("/admin/merged", json=body)
    assert state.status_code == 200
    told = {key: state.json()[key] for key in ("mode", "digest", "adapters", "weights")}
    assert told == {"mode": "unmerged", "digest": None, "adapters": [], "weights": []}
    body["adapters"][1]["weight"] = 0.5
    state = narrow.client.put("/admin/merged", json=body)
    assert (state.json()["adapters"], state.json()["weights"]) == (["code@1"], [0.5])
    narrow.client.delete("/admin/merged")


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_weights_that_are_no_numbers_never_get_that_far(weight: str, narrow: Live) -> None:
    refused = narrow.client.put(
        "/admin/merged",
        content=f'{{"adapters": [{{"name": "math", "weight": {weight}}}]}}',
        headers={"Content-Type": "application/json"},
    )
    assert refused.status_code in (400, 422)
