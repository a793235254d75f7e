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
Write = Callable[[httpx.Client, str, Path], httpx.Response]


def _publish(client: httpx.Client, name: str, folder: Path) -> httpx.Response:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    return client.post("/admin/adapters", data={"name": name}, files=files)


def _check(client: httpx.Client, name: str, folder: Path) -> httpx.Response:
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    return client.post("/admin/adapters/check", data={"name": name}, files=files)


def _large(client: httpx.Client, name: str, _: Path) -> httpx.Response:
    """Larger than what a body's parser keeps in memory."""
    files = [("files", ("adapter_model.safetensors", bytes(3 << 20)))]
    return client.post("/admin/adapters", data={"name": name}, files=files)


def _texts(client: httpx.Client, name: str, _: Path) -> httpx.Response:
    lines = "".join(f'"text {i}"\n' for i in range(2000)).encode()
    return client.put(f"/admin/adapters/{name}/texts", files={"texts": ("texts.jsonl", lines)})


def _alias(client: httpx.Client, name: str, _: Path) -> httpx.Response:
    return client.put(f"/admin/adapters/{name}/aliases/new", json={"version": 1})


def _unalias(client: httpx.Client, name: str, _: Path) -> httpx.Response:
    return client.delete(f"/admin/adapters/{name}/aliases/old")


def _delete(client: httpx.Client, name: str, _: Path) -> httpx.Response:
    return client.delete(f"/admin/adapters/{name}@2")


WRITES: dict[str, Write] = {
    "publish": _publish,
    "check": _check,
    "large": _large,
    "texts": _texts,
    "alias": _alias,
    "unalias": _unalias,
    "delete": _delete,
}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnDisk]:
    with server_on_disk(tmp_path_factory.mktemp("disk")) as served:
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_nobody_s_fault(on_disk: OnDisk, kind: str, tmp_path: Path) -> None:
    """With an adapter of its own, of two versions and an alias, each kind of end fares alike."""
    client, seed = on_disk.client, 10 * KINDS.index(kind)
    folders = [make_lora_folder(tmp_path / f"{i}", rank=4, seed=seed + i) for i in range(3)]
    for made in folders[:2]:
        assert _publish(client, kind, made).status_code == 201
    old = f"/admin/adapters/{kind}/aliases/old"
    assert client.put(old, json={"version": 1}).status_code == 200
    folder = folders[2]
    generate = {"inputs": "a", "parameters": {"max_new_tokens": 2, "adapter_id": kind}}
    before, kept = _shown(client), _files(on_disk.store)
    done: set[str] = set()
    on_disk.fill[kind]()
    try:
        for name, write in WRITES.items():
            answer = write(client, kind, folder)
            if answer.status_code < 300:  # a database may find room in what it has already
                assert name in ("check", "alias", "unalias", "delete"), answer.text
                done.add(name)
                continue
            assert answer.status_code == 507, (name, answer.text)
            assert answer.json()["error_type"] == "store_full"
            assert "no room left" in answer.json()["error"]
        assert client.post("/generate", json=generate).status_code == 200
        assert client.get("/v1/models").status_code == 200
        if not done - {"check"}:
            assert _shown(client) == before
            assert _files(on_disk.store) == kept
    finally:
        on_disk.empty[kind]()
    for name, write in WRITES.items():
        if name not in ("large", *done):
            assert write(client, kind, folder).status_code in (200, 201), name
    assert (kind, "1") in {row[:2] for row in _shown(client)}
    assert client.post("/generate", json=generate).status_code == 200
