"""A server whose log nobody reads, or that has no room for it, does all that another does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptermix.bench.server import free_port
from tests.server.http.test_drain import children
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS, wait_for

pytestmark = pytest.mark.slow


class Served:
    def __init__(self, process: subprocess.Popen[bytes], client: httpx.Client) -> None:
        self.process = process
        self._client = client

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self._client.get("/health/ready").status_code == 200
        return False

    def does_all(self, folder: Path, name: str) -> None:
        """What it would log of is done and answered, and an engine that dies comes back."""
        files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
        body = {"model": name, "prompt": "a", "max_tokens": 2, "user": "who"}
        path = "/admin/adapters"
        assert self._status("POST", path, data={"name": name}, files=files) == 201
        assert self._status("PUT", f"{path}/{name}/aliases/y", json={"version": 1}) == 200
        assert self._status("POST", "/v1/completions", json=body) == 200
        assert self._status("GET", "/nothing") == 404
        (engine,) = children(self.process, b"engine_main")
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: children(self.process, b"engine_main") not in ([], [engine]))
        wait_for(self.is_ready)
        assert self._status("POST", "/v1/completions", json=body) == 200
        assert self._status("DELETE", f"{path}/{name}") == 200

    def ends(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HANG_SECONDS) == 0

    def _status(self, method: str, path: str, **given: Any) -> int:
        return self._client.request(method, path, **given).status_code


@contextmanager
def serving(folder: Path, log: int) -> Iterator[Served]:
    """A server whose log goes to this descriptor, which is closed here."""
    port = str(free_port())  # no log tells which one it took
    command = [sys.executable, "-m", "adaptermix.cli.main", "serve", "--model", "tiny-random"]
    command += ["--encoder", "none", "--kernels", "reference", "--cache", str(folder)]
    with subprocess.Popen([*command, "--port", port], stderr=log) as process:
        os.close(log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as client:
                served = Served(process, client)
                wait_for(lambda: served.is_ready() or process.poll() is not None)
                yield served
        finally:
            process.kill()


def test_a_disk_without_room(tmp_path: Path) -> None:
    folder = make_lora_folder(tmp_path / "adapter", seed=1)
    with serving(tmp_path, os.open("/dev/full", os.O_WRONLY)) as served:
        served.does_all(folder, "full")
        served.ends()


def test_a_reader_that_has_gone_and_one_that_stands_still(tmp_path: Path) -> None:
    folder = make_lora_folder(tmp_path / "adapter", seed=1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = os.open(pipe, os.O_WRONLY)
    os.close(reading)
    with serving(tmp_path, log) as served:
        served.does_all(folder, "gone")
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        other = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(other, b"\n")  # until whoever writes next would wait
        os.close(other)
        served.does_all(folder, "still")
        served.ends()
        os.close(reading)
