"""kill -9 of the whole server while uploads come in: the store holds all of each, or none."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from adapters_store.store import AdapterStore
from tests.server.http.test_drain import children
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow

_BOUNDARY = "frontier"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_lora_folder(tmp_path / "lora")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process on the tiny model, its store in `tmp_path / store`, and its address."""
    command = [sys.executable, "-m", "adaptermix.cli.main", "serve", "--model", "tiny-random"]
    options = ["--port", "0", "--encoder", "none", "--kernels", "reference"]
    places = ["--cache", str(tmp_path / "cache"), "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        [*command, *options, *places], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("ready: "))
        yield process, line.split(" on ")[1].split(",")[0]
        process.kill()


def _assert_whole(root: Path, names: set[str], expected: bytes) -> int:
    """Everything that the store lists can be read, and nothing else is there."""
    store = AdapterStore.open(root)
    try:
        records = store.list()
        for record in records:
            assert record.name in names
            assert store.blobs.fetch(record.digest).tensors.read_bytes() == expected
        store.gc(grace_seconds=0)
        assert {record.digest for record in store.list()} == {r.digest for r in records}
        return len(records)
    finally:
        store.close()


@contextmanager
def half_sent(url: str, tensors: bytes) -> Iterator[None]:
    """An upload of which the server has read the half, and no more comes."""
    part = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; '
        f'filename="adapter_model.safetensors"\r\n\r\n'
    ).encode() + tensors[: len(tensors) // 2]
    head = (
        "POST /admin/adapters HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {2 * len(tensors)}\r\nExpect: 100-continue\r\n\r\n"
    )
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 100")  # it reads the body now
        connection.sendall(part)
        yield


def test_a_kill_among_uploads_leaves_whole_adapters_and_no_half_ones(
    server: tuple[subprocess.Popen[str], str], folder: Path, tmp_path: Path
) -> None:
    process, url = server
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    third = threading.Event()
    asked: set[str] = set()
    stored: set[str] = set()

    def upload() -> None:
        for index in itertools.count():
            asked.add(f"a{index}")
            data = {"name": f"a{index}", "texts": f'{{"text": "{index}"}}'}
            try:
                httpx.post(
                    f"{url}/admin/adapters", data=data, files=files, timeout=HANG_SECONDS
                ).raise_for_status()
            except httpx.TransportError:
                return
            stored.add(f"a{index}")
            if index == 2:
                third.set()

    tensors = (folder / "adapter_model.safetensors").read_bytes()
    uploads = threading.Thread(target=upload)
    with half_sent(url, tensors):
        uploads.start()
        assert third.wait(HANG_SECONDS)
        (engine,) = map(os.pidfd_open, children(process, b"engine_main"))
        assert select.select([engine], [], [], 0)[0] == []
        process.send_signal(signal.SIGKILL)
        uploads.join(HANG_SECONDS)
        process.wait()
    assert select.select([engine], [], [], HANG_SECONDS)[0] == [engine]  # it ends with its parent
    os.close(engine)
    count = _assert_whole(tmp_path / "store", asked, tensors)
    assert len(stored) <= count  # what was answered is there
