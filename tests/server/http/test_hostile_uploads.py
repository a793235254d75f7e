"""Uploads that mean harm, over HTTP: each is refused with a reason, and nothing is stored."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.live import Live, serving, tiny_settings

Files = list[tuple[str, bytes]]
Make = Callable[[Path], Files]


def loose(folder: Path) -> Files:
    return [(file.name, file.read_bytes()) for file in folder.iterdir()]


def replaced(folder: Path, name: str, data: bytes) -> Files:
    return [(n, data if n == name else content) for n, content in loose(folder)]


def zip_of(*entries: tuple[str, bytes]) -> Files:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return [("a.zip", buffer.getvalue())]


def tar_with_link(_: Path) -> Files:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("adapter_model.safetensors")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        archive.addfile(link)
    return [("a.tar", buffer.getvalue())]


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LYING = safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}})

HOSTILE: dict[str, tuple[Make, str]] = {
    "pickle": (lambda f: [*loose(f), ("adapter_model.bin", b"\x80\x04.")], "adapter_model.bin"),
    "parent path": (lambda f: [*loose(f), ("../../evil.safetensors", b"x")], ""),
    "absolute path": (lambda f: zip_of(("/etc/cron.d/evil", b"x"), *loose(f)), "/etc/cron.d/evil"),
    "zip slip": (lambda f: zip_of(("../evil.json", b"x"), *loose(f)), "../evil.json"),
    "symlink in a tar": (tar_with_link, "link"),
    "zip bomb": (lambda f: zip_of((TENSORS, bytes(1 << 26))), "limit"),
    "no zip": (lambda f: [("a.zip", b"PK not a zip")], "zip"),
    "archive beside files": (lambda f: [*loose(f), *zip_of(("x", b""))], "alone"),
    "truncated header": (lambda f: replaced(f, TENSORS, b"\xff\xff"), TENSORS.split(".")[0]),
    "huge header": (lambda f: replaced(f, TENSORS, struct.pack("<Q", 1 << 60) + b"{}"), "header"),
    "lying header": (lambda f: replaced(f, TENSORS, LYING), ""),
    "config that is no JSON": (lambda f: replaced(f, CONFIG, b"{"), CONFIG),
    "config that nests": (lambda f: replaced(f, CONFIG, b"[" * 100_000), CONFIG),
    "no tensors": (lambda f: [(n, c) for n, c in loose(f) if n != TENSORS], ""),
    "nothing known": (lambda f: [("readme.md", b"hello")], "adapter_config.json"),
    "program": (lambda f: [*loose(f), ("install.sh", b"rm -rf /")], "install.sh"),
}


@pytest.mark.parametrize(("make", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_uploads_are_refused(
    bare: Live, folders: dict[str, Path], make: Make, said: str
) -> None:
    files = [("files", file) for file in make(folders["math"])]
    response = bare.client.post("/admin/adapters", data={"name": "evil"}, files=files)
    assert response.status_code == 422, response.text
    assert response.json()["error_type"] in ("invalid_adapter", "validation")
    assert said in response.json()["error"]
    assert bare.client.get("/admin/adapters/evil").status_code == 404


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 200, "a@1", "sha256:abc"])
def test_hostile_names_are_refused(bare: Live, folders: dict[str, Path], name: str) -> None:
    response = bare.publish(folders["math"], name)
    assert response.status_code == 422
    assert bare.client.get("/admin/adapters").json() == {"adapters": []}


def test_a_form_without_files_is_refused(bare: Live) -> None:
    response = bare.client.post("/admin/adapters", files={"name": (None, "x")})
    assert response.status_code == 422
    assert "files" in response.json()["error"]


def test_a_form_of_another_kind_is_told_which_is_read(bare: Live) -> None:
    response = bare.client.post("/admin/adapters", data={"name": "x"})
    assert response.status_code == 415
    assert "multipart/form-data" in response.json()["error"]


def test_bodies_past_their_limit_are_413(folders: dict[str, Path], tmp_path: Path) -> None:
    with serving(tiny_settings(tmp_path, max_body=2048, max_upload=4096)) as server:
        upload = server.publish(folders["math"], "large")
        assert upload.status_code == 413
        assert upload.json()["error_type"] == "too_large"
        assert "ADAPTERMIX_MAX_UPLOAD" in upload.json()["error"]
        declared = server.generate("x" * 4000)
        assert declared.status_code == 413
        assert "2048" in declared.json()["error"]
        pieces = (b"x" * 1000 for _ in range(5))
        kind = {"Content-Type": "application/json"}
        chunked = server.client.post("/v1/completions", content=pieces, headers=kind)
        assert chunked.status_code == 413
        assert "2048" in chunked.json()["error"]["message"]
        assert server.generate().status_code == 200
