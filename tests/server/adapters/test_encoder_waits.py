"""Who waits for the sentence encoder: not for ever, and not for anybody's long text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_engine.routers.encoder.encoder_messages import MAX_CHARACTERS
from tests.server.generation.test_timeouts import children
from tests.server.live import Live, serving, tiny_settings
from tests.support.stopping import standing_still
from tests.support.waiting import wait_for

LONG = "".join(" " if i % 5 == 0 else chr(97 + i * i % 26) for i in range(130)) * 24_000
FEW = {"max_new_tokens": 1, "truncate": 4, "details": True}


def routed(name: str, **params: Any) -> dict[str, Any]:
    return {"router": {"name": name, "candidates": ["math", "code"], **params}}


@pytest.mark.parametrize("name", ["similarity", "retrieval"])
def test_a_long_text_is_cut_before_it_is_sent(live: Live, name: str) -> None:
    mixture = routed(name)
    weights = [
        live.answer(text, mixture=mixture, parameters=FEW)["details"]["routing"]["weights"]
        for text in (LONG, LONG[-MAX_CHARACTERS:], LONG[-100:] + "other")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_the_beginning_is_sent_where_that_is_read(live: Live) -> None:
    mixture = routed("similarity", window="head")
    weights = [
        live.answer(text, mixture=mixture, parameters=FEW)["details"]["routing"]["weights"]
        for text in (LONG, LONG[:MAX_CHARACTERS], "other" + LONG[:100])
    ]
    assert weights[0] == weights[1] != weights[2]


def test_an_encoder_that_gives_no_answer_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    directory = next(iter(folders.values())).parent
    before = set(children("encoder.worker"))
    settings = tiny_settings(tmp_path, encoder="default", adapters=directory, routing_patience=0.5)
    mixture = {"mixture": routed("similarity")}
    routes: dict[str, dict[str, Any]] = {
        "/generate": {"inputs": "a"} | mixture,
        "/v1/completions": {"model": "tiny-random", "prompt": "a"} | mixture,
    }
    with serving(settings) as live:

        def is_answered() -> bool:
            return live.client.post("/generate", json=routes["/generate"]).status_code == 200

        wait_for(is_answered)
        with standing_still([pid for pid in children("encoder.worker") if pid not in before]):
            for path, body in routes.items():
                answer = live.client.post(path, json=body)
                assert answer.status_code == 503
                assert "router_unavailable" in answer.text
                assert "0.5 s (ADAPTERMIX_ROUTING_PATIENCE)" in answer.text
                assert answer.headers["retry-after"]
        wait_for(is_answered)
