"""An engine that dies or hangs under a live server: it is noticed, and it is back."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from router_engine.client.process_client import ProcessEngineClient
from server.http.container import process_engine
from tests.server.live import Live, serving, tiny_settings
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow
LONG = {"max_new_tokens": 900, "ignore_eos_token": True}


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with its engine in a process, and an adapter."""
    # A second and a half: loading is not bound by it, and a step of the tiny model is a moment.
    settings = tiny_settings(tmp_path_factory.mktemp("supervised"), engine_patience=1.5)
    with serving(settings, process_engine) as live:
        assert live.publish(folders["math"], "math").status_code == 201
        yield live


def engine_of(served: Live) -> ProcessEngineClient:
    engine = served.container.services.engine
    assert isinstance(engine, ProcessEngineClient)
    return engine


def test_a_killed_engine_ends_its_requests_and_comes_back(served: Live) -> None:
    engine = engine_of(served)
    asked = {"max_new_tokens": 6, "ignore_eos_token": True, "adapter_id": "math"}
    first = served.answer(parameters=asked)
    body = {"inputs": "hello", "parameters": LONG | {"adapter_id": "math"}}
    with served.client.stream("POST", "/generate_stream", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data:")
        os.kill(engine.pid, signal.SIGKILL)
        last = json.loads([line for line in lines if line][-1].removeprefix("data:"))
    assert last["error_type"] == "engine_died"
    down = served.generate(parameters=asked)
    assert down.status_code == 503
    assert int(down.headers["retry-after"]) >= 1
    assert served.client.get("/health/ready").status_code == 503
    assert served.client.get("/health/live").status_code == 200
    assert "adaptermix_engine_ready 0.0" in served.client.get("/metrics").text
    served.run(engine.wait_ready())
    assert served.client.get("/health/ready").status_code == 200
    assert served.answer(parameters=asked)["generated_text"] == first["generated_text"]


def test_an_engine_that_hangs_is_noticed_and_started_again(served: Live) -> None:
    engine, restarts = engine_of(served), restarts_of(served)
    before = served.answer(parameters={"max_new_tokens": 4})
    answers: list[httpx.Response] = []
    asked = threading.Thread(
        target=lambda: answers.append(served.generate(parameters={"max_new_tokens": 4}))
    )
    os.kill(engine.pid, signal.SIGSTOP)
    asked.start()
    # While it hangs, who watches the server is answered, with what was known last.
    figures = served.client.get("/metrics")
    assert figures.status_code == 200
    assert re.search(r"adaptermix_engine_figures_age_seconds \d", figures.text)
    assert served.client.get("/health/live").status_code == 200
    asked.join(HANG_SECONDS)
    assert answers[0].status_code == 503
    assert answers[0].json()["error_type"] in {"engine_died", "engine_not_ready"}
    served.run(engine.wait_ready())
    assert served.client.get("/health/ready").status_code == 200
    assert restarts_of(served) > restarts
    after = served.answer(parameters={"max_new_tokens": 4})
    assert after["generated_text"] == before["generated_text"]


def restarts_of(served: Live) -> int:
    metrics = served.client.get("/metrics").text
    restarts = re.search(r'adaptermix_process_restarts{process="engine"} (\d+)', metrics)
    assert restarts is not None
    return int(restarts[1])
