"""A full disk is 507 and nobody's fault, and leaves nothing half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.disks import KINDS, OnDisk, server_on_disk
from tests.support.tiny import make_lora_folder

pytestmark = pytest.mark.slow
GENERATE = {"inputs": "a", "parameters": {"max_new_tokens": 2, "adapter_id": "math"}}
Write = Callable[[httpx.Client, Path], httpx.Response]


def _publish(client: httpx.Client, folder: Path) -> httpx.Response:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    return client.post("/admin/adapters", data={"name": "math"}, files=files)


def _check(client: httpx.Client, folder: Path) -> httpx.Response:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    return client.post("/admin/adapters/check", data={"name": "math"}, files=files)


def _large(client: httpx.Client, _: Path) -> httpx.Response:
    """Larger than what a body's parser keeps in memory."""
    files = [("files", ("adapter_model.safetensors", bytes(3 << 20)))]
    return client.post("/admin/adapters", data={"name": "math"}, files=files)


def _texts(client: httpx.Client, _: Path) -> httpx.Response:
    lines = "".join(f'"text {i}"\n' for i in range(2000)).encode()
    return client.put("/admin/adapters/math/texts", files={"texts": ("texts.jsonl", lines)})


def _alias(client: httpx.Client, _: Path) -> httpx.Response:
    return client.put("/admin/adapters/math/aliases/new", json={"version": 1})


def _unalias(client: httpx.Client, _: Path) -> httpx.Response:
    return client.delete("/admin/adapters/math/aliases/old")


def _delete(client: httpx.Client, _: Path) -> httpx.Response:
    return client.delete("/admin/adapters/math@2")


WRITES: dict[str, Write] = {
    "publish": _publish,
    "check": _check,
    "large": _large,
    "texts": _texts,
    "alias": _alias,
    "unalias": _unalias,
    "delete": _delete,
}


@pytest.fixture(scope="module", params=KINDS)
def on_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnDisk]:
    """A server with two versions of an adapter and an alias."""
    root = tmp_path_factory.mktemp(request.param)
    with server_on_disk(request.param, root) as served:
        for seed in (1, 2):
            folder = make_lora_folder(root / f"seed{seed}", rank=4, seed=seed)
            assert _publish(served.client, folder).status_code == 201
        path = "/admin/adapters/math/aliases/old"
        assert served.client.put(path, json={"version": 1}).status_code == 200
        yield served


def _shown(client: httpx.Client) -> list[tuple[Any, ...]]:
    listed = client.get("/admin/adapters")
    assert listed.status_code == 200, listed.text
    keys = ("name", "version", "digest", "aliases", "num_texts")
    return [tuple(str(one[key]) for key in keys) for one in listed.json()["adapters"]]


def _files(store: Path) -> list[str]:
    """What lies in the store, the database's own files left aside."""
    blobs = store / "blobs"
    return sorted(str(path.relative_to(blobs)) for path in blobs.rglob("*") if path.is_file())


def test_a_full_disk_is_nobody_s_fault(on_disk: OnDisk, tmp_path: Path) -> None:
    client = on_disk.client
    folder = make_lora_folder(tmp_path / "new", rank=4, seed=9)
    before, kept = _shown(client), _files(on_disk.store)
    done: set[str] = set()
    on_disk.fill()
    try:
        for name, write in WRITES.items():
            answer = write(client, folder)
            if answer.status_code < 300:  # a database may find room in what it has already
                assert name in ("check", "alias", "unalias", "delete"), answer.text
                done.add(name)
                continue
            assert answer.status_code == 507, (name, answer.text)
            assert answer.json()["error_type"] == "store_full"
            assert "no room left" in answer.json()["error"]
        assert client.post("/generate", json=GENERATE).status_code == 200
        assert client.get("/v1/models").status_code == 200
        if not done - {"check"}:
            assert _shown(client) == before
            assert _files(on_disk.store) == kept
    finally:
        on_disk.empty()
    for name, write in WRITES.items():
        if name not in ("large", *done):
            assert write(client, folder).status_code in (200, 201), name
    assert ("math", "1") in {row[:2] for row in _shown(client)}
    assert client.post("/generate", json=GENERATE).status_code == 200
