"""An admin's load, pin, unpin or merge of bytes that cannot be read: 424, and all else goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.live import Live

ASKED = {
    "load": ("POST", "/admin/adapters/lost/load", None),
    "pin": ("POST", "/admin/adapters/lost/pin", None),
    "unpin": ("POST", "/admin/adapters/lost/pin", {"pinned": False}),
    "merge": ("PUT", "/admin/merged", {"adapters": [{"name": "lost", "weight": 1.0}]}),
}


@pytest.fixture(scope="module")
def lost(bare: Live, folders: dict[str, Path]) -> Live:
    """A server that has lost the bytes of one of two adapters."""
    assert bare.publish(folders["math"], "kept").status_code == 201
    digest = bare.publish(folders["code"], "lost").json()["digest"].removeprefix("sha256:")
    blobs = bare.container.settings.cache / "store" / "blobs"
    (blob,) = (file for file in blobs.rglob("*.safetensors") if digest in str(file))
    blob.parent.chmod(0o700)
    blob.unlink()
    for path in blob.parent.iterdir():
        path.unlink()
    return bare


@pytest.mark.parametrize("name", ASKED)
def test_who_asked_is_told_and_nobody_else(name: str, lost: Live) -> None:
    method, path, body = ASKED[name]
    response = lost.client.request(method, path, json=body)
    assert response.status_code == 424, response.text
    assert response.json()["error_type"] == "generation"
    assert "failed to load" in response.json()["error"]
    lost.answer(parameters={"max_new_tokens": 2, "adapter_id": "kept"})
    assert lost.client.get("/admin/merged").json()["mode"] == "unmerged"
