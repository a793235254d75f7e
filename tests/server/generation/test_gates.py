"""Gates inside layers, as an answer's details, a score, /metrics and a picture show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptermix.cli.heatmap import write_gates
from tests.adaptermix.cli.test_main import ok, run
from tests.server.live import Live
from tests.server.test_metrics import increase, samples
from tests.support.expert_adapters import MOA_TARGETS, SPARSE, make_expert_folder
from tests.support.tiny import make_lora_folder

ASKED = {"max_new_tokens": 4, "ignore_eos_token": True, "details": True, "gates": True}
GATED = {"adapters": [{"name": "plain", "weight": 0.5}, {"name": "gated", "weight": 0.5}]}
PROMPT = "one two three"  # 13 tokens: one a byte


@pytest.fixture(scope="module")
def published(bare: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    root = tmp_path_factory.mktemp("gates")
    assert bare.publish(make_expert_folder(root / "gated", SPARSE), "gated").status_code == 201
    assert bare.publish(make_lora_folder(root / "plain"), "plain").status_code == 201
    return bare


def _check(gates: list[dict[str, Any]], tokens: int) -> None:
    (said,) = gates
    assert said["adapter"] == "gated@1"
    assert said["experts"] == [*MOA_TARGETS, "parallel"]
    assert said["tokens"] == tokens
    for rows in (said["mean"], said["std"]):
        assert [len(row) for row in rows] == [6, 6]
        assert all(0 <= value < 1 for row in rows for value in row)
    assert 0 < said["spread"] < 0.5
    assert 0 < said["closed"] < 1


def test_details_have_them_where_asked_for(published: Live) -> None:
    details = published.answer(PROMPT, parameters=ASKED, mixture=GATED)["details"]
    tokens = details["prompt_tokens"] + 3  # the last of the answer is read by nobody
    _check(details["gates"], tokens)
    frames = published.frames(PROMPT, parameters=ASKED, mixture=GATED)
    assert frames[-1]["details"]["gates"] == details["gates"]  # and none came from the cache
    silent = published.answer(PROMPT, parameters={**ASKED, "gates": False}, mixture=GATED)
    assert "gates" not in silent["details"]


@pytest.mark.parametrize("mixture", [None, {"adapters": [{"name": "plain"}]}])
def test_without_routers_there_are_none(mixture: Any, published: Live) -> None:
    assert published.answer(parameters=ASKED, mixture=mixture)["details"]["gates"] == []


def test_a_stop_string_does_not_lose_them(published: Live) -> None:
    whole = published.answer(PROMPT, parameters={**ASKED, "max_new_tokens": 24}, mixture=GATED)
    text = whole["generated_text"]
    stop = text[len(text) // 2 :][:2]
    parameters = {**ASKED, "max_new_tokens": 24, "stop": [stop]}
    details = published.answer(PROMPT, parameters=parameters, mixture=GATED)["details"]
    assert details["finish_reason"] == "stop_sequence"
    (said,) = details["gates"]
    read = details["prompt_tokens"] + details["generated_tokens"]
    assert read - 1 <= said["tokens"] < whole["details"]["gates"][0]["tokens"]


def test_they_are_part_of_the_details(published: Live) -> None:
    response = published.generate(parameters={"gates": True})
    assert response.status_code == 422
    assert "gates is part of the details: set details" in response.text


def test_scores_have_them(published: Live) -> None:
    body = {"inputs": PROMPT, "completions": ["ab", "xyz"], "mixture": GATED}
    reply = published.client.post("/score", json={**body, "gates": True}).json()
    for score in reply["scores"]:
        _check(score["gates"], reply["prompt_tokens"] + len(score["tokens"]) - 1)
    silent = published.client.post("/score", json=body).json()
    assert all("gates" not in score for score in silent["scores"])


def test_metrics_count_them_at_each_token(published: Live) -> None:
    before = samples(published)
    published.answer(parameters={"max_new_tokens": 4, "ignore_eos_token": True}, mixture=GATED)
    name = "adaptermix_gate_value"
    every = 4 * 2 * 6
    assert increase(published, f"{name}_count", before) == every
    assert increase(published, f"{name}_bucket", before, le="1.0") == every
    closed = increase(published, f"{name}_bucket", before, le="0.0")
    assert 0 < closed < every
    assert 0 < increase(published, f"{name}_sum", before) < every - closed
    before = samples(published)
    published.answer(mixture={"adapters": [{"name": "plain"}]})
    assert increase(published, f"{name}_count", before) == 0


def test_a_picture_of_them(published: Live, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "gates.png"
    at = ("--url", published.url, "-n", "4", "--gates")
    assert str(picture) in ok("generate", "hello", "--adapter", "gated", *at, str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = ok("generate", "hello", "--adapter", "plain", *at, str(tmp_path / "none.png"))
    assert "no adapter that acted has routers inside its layers" in said
    assert not (tmp_path / "none.png").exists()
    wrong = run("generate", "hello", *at, "gates.jpg")
    assert wrong.exit_code == 2
    assert "--gates" in wrong.output


def test_a_picture_of_layers_without_gates_and_of_many_adapters(tmp_path: Path) -> None:
    one = {
        "adapter": "$a$@1",
        "experts": ["q_proj", "1"],
        "mean": [[None, None], [0.5, None]],
        "spread": 0.25,
        "closed": 0.0,
    }
    write_gates(tmp_path / "one.png", [one])
    write_gates(tmp_path / "many.png", [one] * 9)
    assert (tmp_path / "many.png").stat().st_size > (tmp_path / "one.png").stat().st_size
