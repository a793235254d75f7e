"""A server that is told to stop: what runs may finish, the rest is told, and it ends with 0."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import events
from tests.support.waiting import HANG_SECONDS, wait_for

pytestmark = pytest.mark.slow
BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 900, "ignore_eos_token": True}}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    url: str

    @property
    def engine(self) -> int:
        """The engine's process id."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for child in " ".join(path.read_text() for path in children).split():
            if b"engine_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("there is no engine")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=HANG_SECONDS)

    def ask(self, path: str) -> Asked:
        return Asked(self.url + path)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        wait_for(lambda: self.get("/health/ready").status_code == 503)


class Asked(threading.Thread):
    """A request under way."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.response: httpx.Response | None = None
        self.start()

    def answer(self) -> httpx.Response:
        self.join(HANG_SECONDS)
        assert self.response is not None
        return self.response

    def run(self) -> None:
        self.response = httpx.post(self._url, json=BODY, timeout=HANG_SECONDS)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "server.cli.main", "serve", "--model", "tiny-random"]
    command += ["--encoder", "none", "--kernels", "reference", "--port", "0", *options]
    log = folder / "log"
    with (
        log.open("wb") as sink,
        subprocess.Popen([*command, "--cache", str(folder)], stderr=sink, stdout=sink) as process,
    ):
        try:
            wait_for(lambda: b"ready: " in log.read_bytes() or process.poll() is not None)
            found = re.search(r"on (http://\S+),", log.read_text())
            assert found, log.read_text()
            yield Served(process, found[1])
        finally:
            process.kill()


def held(served: Served, *paths: str) -> list[Asked]:
    """Requests whose engine stands still once they are under way."""
    asked = [served.ask(path) for path in paths]
    gauge = re.compile(rf"adaptermix_requests_running {len(paths)}\.0")
    wait_for(lambda: gauge.search(served.get("/metrics").text) is not None)
    os.kill(served.engine, signal.SIGSTOP)
    return asked


def test_what_runs_may_finish(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        whole, streamed = held(served, "/generate", "/generate_stream")
        served.stop()
        refused = httpx.post(f"{served.url}/generate", json=BODY, timeout=HANG_SECONDS)
        assert refused.status_code == 503
        assert refused.json()["error_type"] == "stopping"
        assert served.get("/health/live").status_code == 200
        os.kill(served.engine, signal.SIGCONT)
        assert len(whole.answer().json()["generated_text"]) > 100
        frames = events(streamed.answer().text)
        assert len(frames) == 900
        assert frames[-1]["generated_text"] == whole.answer().json()["generated_text"]
        assert served.process.wait(HANG_SECONDS) == 0


def test_what_takes_too_long_is_told_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-seconds", "0.5") as served:
        whole, streamed = held(served, "/generate", "/generate_stream")
        served.process.send_signal(signal.SIGTERM)
        answer = whole.answer()
        assert answer.status_code == 503
        assert answer.json()["error_type"] == "cancelled"
        assert answer.headers["retry-after"]
        told = [frame for frame in ends(streamed.answer()) if "error" in frame]
        assert [frame["error_type"] for frame in told] == ["cancelled"]
        assert ends(streamed.answer())[-1] == told[0]
        assert served.process.wait(HANG_SECONDS) == 0


def ends(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    return events(answer.text)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-seconds", "1000") as served:
        (whole,) = held(served, "/generate")
        served.stop()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(HANG_SECONDS) == 0
        with suppress(AssertionError):  # its connection may have been cut
            whole.answer()


def test_a_port_that_is_taken_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        port = served.url.rpartition(":")[2]
        command = [sys.executable, "-X", "importtime", "-m", "server.cli.main", "serve"]
        options = ["--model", "tiny-random", "--cache", str(tmp_path / "other"), "--port", port]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if "import time:" not in line]
        assert any(f"port {port}" in line and "error:" in line for line in lines)
        assert "AdapterMix starts" not in done.stderr
