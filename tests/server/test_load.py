"""Many requests at once: bounds, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from router_engine.calls import GetStats
from tests.server.live import Live, serving, tiny_settings

LONG = {"max_new_tokens": 900, "ignore_eos_token": True}


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Live]:
    """A server where two requests may wait."""
    with serving(tiny_settings(tmp_path, max_waiting=2)) as server:
        yield server


def test_too_many_waiting_get_429_with_retry_after(narrow: Live) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2}}
    with ThreadPoolExecutor(3) as pool:
        with narrow.paused():
            waiting = [pool.submit(narrow.client.post, "/generate", json=body) for _ in range(3)]
            refused = next(f for f in _completed(waiting)).result()
            assert refused.status_code == 429
            assert refused.json()["error_type"] == "overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            stream = narrow.client.post("/v1/completions", json=_openai(stream=True))
            assert stream.status_code == 429
        assert "adaptermix_requests_refused_total 2.0" in narrow.client.get("/metrics").text
        statuses = sorted(future.result().status_code for future in waiting)
    assert statuses == [200, 200, 429]
    assert narrow.generate().status_code == 200


def _completed(futures: Any) -> Any:
    from concurrent.futures import as_completed

    return as_completed(futures)


def _openai(**given: Any) -> dict[str, Any]:
    return {"model": "tiny-random", "prompt": "x", "max_tokens": 4, **given}


def test_mixed_requests_share_a_batch_and_answer_as_alone(live: Live) -> None:
    mixtures: list[Any] = [
        None,
        {"adapters": [{"name": "math"}]},
        {"adapters": [{"name": "math", "weight": 0.5}, {"name": "wide", "weight": -0.7}]},
        {"router": {"name": "similarity", "candidates": ["math", "code"]}},
        {"router": {"name": "similarity", "level": "token", "candidates": ["math", "wide"]}},
    ]
    asked = {"max_new_tokens": 16, "ignore_eos_token": True, "temperature": 0.8, "seed": 9}
    alone = [live.answer(parameters=asked, mixture=mixture) for mixture in mixtures]
    with ThreadPoolExecutor(len(mixtures)) as pool:
        together = pool.map(lambda m: live.answer(parameters=asked, mixture=m), mixtures)
        assert list(together) == alone


def _ended(live: Live, reason: str) -> float:
    """Requests that ended for a reason, as /metrics counts them."""
    line = f'finish_reason="{reason}"'
    text = live.client.get("/metrics").text
    found = [row for row in text.splitlines() if row.startswith("adaptermix_requests_total{")]
    return sum(float(row.rsplit(" ", 1)[1]) for row in found if line in row)


def _wait_until_idle(live: Live) -> None:
    """Poll the engine's own account, one round trip through it at a time."""
    engine = live.container.services.engine
    while True:
        stats = live.run(engine.call(GetStats()))
        if stats.running == stats.waiting == 0 and live.container.admission.live == 0:
            return


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions"])
def test_a_client_that_leaves_a_stream_cancels_its_request(bare: Live, path: str) -> None:
    native = {"inputs": "hello", "parameters": LONG}
    openai = _openai(max_tokens=900, ignore_eos=True, stream=True)
    body = native if path == "/generate_stream" else openai
    before = _ended(bare, "cancelled")
    with bare.client.stream("POST", path, json=body) as response:
        assert next(response.iter_lines()).startswith("data:")
    _wait_until_idle(bare)
    assert _ended(bare, "cancelled") == before + 1


def test_a_client_that_leaves_before_its_answer_cancels_its_request(bare: Live) -> None:
    before = _ended(bare, "cancelled")
    body = json.dumps({"inputs": "hello", "parameters": LONG})
    head = (
        "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with bare.paused(), socket.create_connection(("127.0.0.1", bare.port)) as connection:
        connection.sendall(f"{head}{body}".encode())
        while not bare.container.admission.live:
            bare.run(asyncio.sleep(0))
    _wait_until_idle(bare)
    assert _ended(bare, "cancelled") == before + 1
