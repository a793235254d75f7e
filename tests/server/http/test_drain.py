"""A server that is told to stop: what runs may finish, the rest is told, and it ends with 0."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.serving import bound_socket
from tests.server.live import events
from tests.support.waiting import HANG_SECONDS, wait_for

pytestmark = pytest.mark.slow
BODY: dict[str, Any] = {
    "inputs": "hello",
    "parameters": {"max_new_tokens": 900, "ignore_eos_token": True},
}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    url: str

    @property
    def engine(self) -> int:
        """The engine's process id."""
        engines = children(self.process, b"engine_main")
        assert engines, "there is no engine"
        return engines[0]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=HANG_SECONDS)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        wait_for(lambda: self.get("/health/ready").status_code == 503)


def children(process: subprocess.Popen[Any], program: bytes) -> list[int]:
    """The processes that it has started and that run this program."""
    found = []
    for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
        started: list[str] = []
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            started = path.read_text().split()
        for child in started:
            with suppress(FileNotFoundError, ProcessLookupError):
                if program in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


class Asked(threading.Thread):
    """A request under way."""

    def __init__(self, url: str, body: dict[str, Any] = BODY) -> None:
        super().__init__()
        self._url = url
        self._body = body
        self.response: httpx.Response | None = None
        self.start()

    def answer(self) -> httpx.Response:
        self.join(HANG_SECONDS)
        assert self.response is not None
        return self.response

    def run(self) -> None:
        with suppress(httpx.TransportError):  # of a connection that was cut
            self.response = httpx.post(self._url, json=self._body, timeout=HANG_SECONDS)


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that loads, and its log."""
    command = [sys.executable, "-m", "adaptermix.cli.main", "serve", "--model", "tiny-random"]
    command += ["--encoder", "none", "--kernels", "reference", "--port", "0", *options]
    log = folder / "log"
    with (
        log.open("wb") as sink,
        subprocess.Popen([*command, "--cache", str(folder)], stderr=sink, stdout=sink) as process,
    ):
        try:
            yield process, log
        finally:
            process.kill()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    with started(folder, *options) as (process, log):
        wait_for(lambda: b"ready: " in log.read_bytes() or process.poll() is not None)
        found = re.search(r"on (http://\S+),", log.read_text())
        assert found, log.read_text()
        yield Served(process, found[1])


def held(served: Served, *requests: tuple[str, dict[str, Any]]) -> list[Asked]:
    """Requests whose engine stands still once they are under way."""
    asked = [Asked(served.url + path, body) for path, body in requests]
    gauge = re.compile(rf"adaptermix_requests_running {len(requests)}\.0")
    wait_for(lambda: gauge.search(served.get("/metrics").text) is not None)
    os.kill(served.engine, signal.SIGSTOP)
    return asked


def test_what_runs_may_finish(tmp_path: Path) -> None:
    """From the line that says that it is ready to status 0."""
    with serving(tmp_path) as served:
        whole, streamed = held(served, ("/generate", BODY), ("/generate_stream", BODY))
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


def test_what_takes_too_long_is_told_once_inside_the_engine_and_outside(tmp_path: Path) -> None:
    # What waits for the database would wait for a day; the process does not.
    day = "86400"
    options = ["--drain-seconds", "0.5", "--database-patience", day, "--body-patience", day]
    with serving(tmp_path, *options) as served, ExitStack() as stack:
        writer = stack.enter_context(closing(sqlite3.connect(tmp_path / "store" / "adapters.db")))
        writer.isolation_level = None
        writer.execute("BEGIN IMMEDIATE")
        waiting = [stack.enter_context(sent(served, *one)) for one in WAITING]
        asked = [
            ("/generate", BODY),
            ("/generate_stream", BODY),
            ("/v1/completions", OPENAI_STREAM),
        ]
        whole, streamed, openai = held(served, *asked)
        served.process.send_signal(signal.SIGTERM)
        answer = whole.answer()
        assert answer.status_code == 503
        assert answer.json()["error_type"] == "cancelled"
        assert answer.headers["retry-after"]
        failed = [frame for frame in ends(streamed.answer()) if "error" in frame]
        assert [frame["error_type"] for frame in failed] == ["cancelled"]
        assert ends(streamed.answer())[-1] == failed[0]
        told = [answer_of(connection) for connection in waiting]
        for answer in told:
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]
            assert answer.headers["x-request-id"]
        kinds = [
            answer.json().get("error_type") or answer.json()["error"]["type"] for answer in told
        ]
        assert kinds == ["cancelled"] * len(told)
        text = openai.answer().text
        assert text.endswith("data: [DONE]\n\n")
        assert text.count('"type": "cancelled"') == 1
        assert served.process.wait(HANG_SECONDS) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


JSON = "application/json"
PART = '--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx'
WAITING = [  # for the database, or for the rest of a body
    ("PUT /admin/adapters/x/aliases/y", JSON, f'{{"version": {1:40}}}'),
    ("POST /generate", JSON, '{"inputs": '),
    ("POST /v1/completions", JSON, '{"prompt": '),
    ("POST /admin/adapters", "multipart/form-data; boundary=b", PART),
]
OPENAI_STREAM = {
    **{"model": "tiny-random", "prompt": "a", "stream": True},
    **{"max_tokens": 900, "ignore_eos": True},
}


@contextmanager
def sent(served: Served, request: str, kind: str, body: str) -> Iterator[socket.socket]:
    """A connection on which a request went out, and no more of its body than this."""
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"{request} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        length = len(body) if body.endswith("}") else 2 * len(body)
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{body}".encode())
        yield connection


def answer_of(connection: socket.socket) -> httpx.Response:
    """What comes on a connection until its end."""
    with HTTPResponse(connection) as response:
        response.begin()
        headers = dict(response.getheaders())
        return httpx.Response(response.status, headers=headers, content=response.read())


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)])
def test_a_start_can_be_cut_short(tmp_path: Path, signals: tuple[signal.Signals, ...]) -> None:
    with started(tmp_path) as (process, log):
        wait_for(lambda: bool(children(process, b"engine_main")))
        (engine,) = children(process, b"engine_main")
        handle = os.pidfd_open(engine)
        if len(signals) == 1:
            os.kill(engine, signal.SIGSTOP)  # it would load for ever
        for one in signals:
            process.send_signal(one)
        assert process.wait(HANG_SECONDS) == 0
        ended, _, _ = select.select([handle], [], [], HANG_SECONDS)
        os.close(handle)
        assert ended == [handle]
    assert "Traceback" not in log.read_text()
    assert "ready: " not in log.read_text()
    assert "error" not in log.read_text()


def ends(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    return events(answer.text)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-seconds", "1000") as served:
        (whole,) = held(served, ("/generate", BODY))
        served.stop()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(HANG_SECONDS) == 0
        whole.join(HANG_SECONDS)


def test_a_port_that_is_taken_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "adaptermix.cli.main", "serve", "--model", "tiny-random"]
        options = ["--cache", str(tmp_path), "--port", port]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error:")
    assert f"port {port}" in line


def test_a_port_is_taken_for_good() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1, port {port}: "):
            bound_socket("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "b" * 64 + ".example", "\udcff", "a b", "\0"])
def test_a_host_that_is_none_is_told(host: str) -> None:
    with pytest.raises(OSError, match="cannot listen on "):
        bound_socket(host, 0)
