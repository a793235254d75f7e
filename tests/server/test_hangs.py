"""An engine that hangs under a live server: it is noticed, nobody waits for it, and it is back."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_engine.client.process import ProcessEngineClient
from server.container import process_engine
from server.settings import Settings
from tests.server.live import serving, tiny_settings
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow


def _process(config: Any, settings: Settings) -> ProcessEngineClient:
    engine = process_engine(config, settings)
    assert isinstance(engine, ProcessEngineClient)
    return engine


def test_an_engine_that_hangs_is_noticed_and_started_again(tmp_path: Path) -> None:
    # A second and a half: loading is not bound by it, and a step of the tiny model is a moment.
    with serving(tiny_settings(tmp_path, engine_patience=1.5), _process) as server:
        engine = server.container.services.engine
        assert isinstance(engine, ProcessEngineClient)
        before = server.answer(parameters={"max_new_tokens": 4})
        answers: list[httpx.Response] = []
        asked = threading.Thread(
            target=lambda: answers.append(server.generate(parameters={"max_new_tokens": 4}))
        )
        os.kill(engine.pid, signal.SIGSTOP)
        asked.start()
        # While it hangs, who watches the server is answered, with what was known last.
        figures = server.client.get("/metrics")
        assert figures.status_code == 200
        assert re.search(r"adaptermix_engine_figures_age_seconds \d", figures.text)
        assert server.client.get("/health/live").status_code == 200
        asked.join(HANG_SECONDS)
        assert answers[0].status_code == 503
        assert answers[0].json()["error_type"] in {"engine_died", "engine_not_ready"}
        server.run(engine.wait_ready())
        assert server.client.get("/health/ready").status_code == 200
        metrics = server.client.get("/metrics").text
        restarts = re.search(r'adaptermix_process_restarts{process="engine"} (\d+)', metrics)
        assert restarts is not None
        assert int(restarts[1]) >= 1
        after = server.answer(parameters={"max_new_tokens": 4})
        assert after["generated_text"] == before["generated_text"]
