"""The admin routes: publish to delete, residency, the merged base."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live, serving, tiny_settings
from tests.support.copies import make_copies

Folders = dict[str, Path]


def adapter(server: Live, reference: str) -> dict[str, Any]:
    found = server.client.get(f"/admin/adapters/{reference}").json()["adapters"]
    assert len(found) == 1
    return dict(found[0])


def text(server: Live, reference: str) -> str:
    asked = {"max_new_tokens": 8, "ignore_eos_token": True, "adapter_id": reference}
    return str(server.answer(parameters=asked)["generated_text"])


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return buffer.getvalue()


def tarred(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname="adapter")
    return buffer.getvalue()


def test_a_published_adapter_can_be_used_at_once(bare: Live, folders: Folders) -> None:
    response = bare.publish(folders["math"], "fresh", tags=["task", "a,b"])
    made = response.json()
    assert response.status_code == 201
    assert (made["name"], made["version"]) == ("fresh", 1)
    assert made["digest"].startswith("sha256:")
    assert made["tags"] == ["a", "b", "task"] or set(made["tags"]) == {"task", "a", "b"}
    assert made["num_texts"] == 4
    assert made["max_rank"] == 4
    assert text(bare, "fresh") != text(bare, "")
    assert text(bare, made["digest"]) == text(bare, "fresh@1") == text(bare, "fresh")


@pytest.mark.parametrize(("suffix", "pack"), [("zip", zipped), ("tar.gz", tarred)])
def test_an_archive_is_the_same_adapter(
    bare: Live, folders: Folders, suffix: str, pack: Any
) -> None:
    loose = bare.publish(folders["code"], "loose").json()
    files = {"files": (f"code.{suffix}", pack(folders["code"]))}
    response = bare.client.post("/admin/adapters", data={"name": f"packed-{suffix}"}, files=files)
    assert response.status_code == 201, response.text
    assert response.json()["digest"] == loose["digest"]


def test_texts_beside_the_files_win(bare: Live, folders: Folders) -> None:
    lines = b'"one"\n{"text": "two"}\n\n'
    files = [
        *(("files", (f.name, f.read_bytes())) for f in folders["code"].iterdir()),
        ("texts", ("mine.jsonl", lines)),
    ]
    made = bare.client.post("/admin/adapters", data={"name": "texts"}, files=files).json()
    assert made["num_texts"] == 2
    files[-1] = ("texts", ("mine.jsonl", b'{"txt": "two"}'))
    response = bare.client.post("/admin/adapters", data={"name": "texts"}, files=files)
    assert response.status_code == 422
    assert "texts, line 1" in response.json()["error"]


def test_a_check_stores_nothing_and_says_what_it_costs(bare: Live, folders: Folders) -> None:
    before = bare.client.get("/admin/adapters").json()
    report = bare.upload("/admin/adapters/check", folders["wide"], "tried").json()
    assert report["loads"] is True
    assert report["max_rank"] == 8
    assert report["rank_rows"] == 8 * 4 * 2
    assert report["device_bytes"] > 0
    assert report["digest"].startswith("sha256:")
    assert bare.client.get("/admin/adapters").json() == before


def test_a_check_names_every_problem_at_once(bare: Live, folders: Folders, tmp_path: Path) -> None:
    for file in folders["math"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"use_dora": True, "bias": "all"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = bare.upload("/admin/adapters/check", tmp_path, "tried").json()
    assert report["loads"] is False
    said = " ".join(f"{p['where']} {p['message']}" for p in report["problems"])
    assert "use_dora" in said
    assert "bias" in said
    refused = bare.publish(tmp_path, "tried")
    assert refused.status_code == 422
    assert refused.json()["error_type"] == "invalid_adapter"
    assert "use_dora" in refused.json()["error"]


def test_versions_aliases_and_the_newest(bare: Live, folders: Folders) -> None:
    first, second = (bare.publish(folders[name], "moving") for name in ("math", "code"))
    assert (first.json()["version"], second.json()["version"]) == (1, 2)
    path = "/admin/adapters/moving/aliases/live"
    assert bare.client.put(path, json={"version": 1}).json()["aliases"] == ["live"]
    assert text(bare, "moving@live") == text(bare, "moving@1")
    assert bare.client.put(path, json={"version": 2}).status_code == 200
    assert text(bare, "moving@live") == text(bare, "moving@2") == text(bare, "moving")
    assert text(bare, "moving@1") != text(bare, "moving@2")
    assert [a["version"] for a in bare.client.get("/admin/adapters/moving").json()["adapters"]] == [
        1,
        2,
    ]
    assert bare.client.put(path, json={"version": 9}).status_code == 404
    assert bare.client.put(path, json={"version": 0}).status_code == 422
    assert bare.client.put(path.replace("live", "7"), json={"version": 1}).status_code == 422
    assert bare.client.delete(path).json() == {"deleted": ["moving@live"], "freed_bytes": 0}
    assert bare.generate(parameters={"adapter_id": "moving@live"}).status_code == 404


def test_delete_takes_one_version_or_all(bare: Live, folders: Folders) -> None:
    for name in ("math", "code", "wide"):
        bare.publish(folders[name], "going")
    assert bare.client.delete("/admin/adapters/going@2").json()["deleted"] == ["going@2"]
    assert bare.generate(parameters={"adapter_id": "going@2"}).status_code == 404
    gone = bare.client.delete("/admin/adapters/going").json()
    assert gone["deleted"] == ["going@1", "going@3"]
    missing = bare.client.delete("/admin/adapters/going")
    assert missing.status_code == 404


def test_a_delete_frees_the_disk(bare: Live, folders: Folders) -> None:
    stored = []
    for texts in ('{"text": "only here"}', '{"text": "and only here"}'):
        stored.append(bare.publish(folders["math"], "alone", texts=texts).json()["size_bytes"])
    assert bare.client.delete("/admin/adapters/alone@1").json()["freed_bytes"] >= stored[0]
    assert bare.generate(parameters={"adapter_id": "alone@2"}).status_code == 200
    assert bare.client.delete("/admin/adapters/alone").json()["freed_bytes"] >= stored[1]


def test_load_pin_and_unload(bare: Live, folders: Folders) -> None:
    bare.publish(folders["math"], "held")
    path = "/admin/adapters/held"
    # Other tests may have brought the same content under another name.
    bare.client.post(f"{path}/unload")
    assert adapter(bare, "held")["residency"] is None
    loaded = bare.client.post(f"{path}/load").json()
    assert loaded["level"] == "device"
    assert loaded["device_bytes"] > 0
    assert bare.client.post(f"{path}/pin").json()["pinned"] is True
    for response in (bare.client.post(f"{path}/unload"), bare.client.delete(path)):
        assert response.status_code == 409
        assert response.json()["error_type"] == "conflict"
    assert bare.client.post(f"{path}/pin", json={"pinned": False}).json()["pinned"] is False
    freed = bare.client.post(f"{path}/unload").json()
    assert freed["name"] == "held@1"
    assert freed["freed_bytes"] >= loaded["device_bytes"]
    assert adapter(bare, "held")["residency"] is None


def test_a_pinned_adapter_is_deleted_by_force(bare: Live, folders: Folders) -> None:
    bare.publish(folders["wide"], "forced")
    bare.client.post("/admin/adapters/forced/pin")
    response = bare.client.delete("/admin/adapters/forced", params={"force": "true"})
    assert response.json() == {"deleted": ["forced@1"], "freed_bytes": 0}  # it is pinned still


def test_the_base_s_name_is_taken(bare: Live, folders: Folders) -> None:
    response = bare.publish(folders["math"], "tiny-random")
    assert response.status_code == 422
    assert "base model" in response.json()["error"]


def test_merge_and_restore(live: Live) -> None:
    asked = {"max_new_tokens": 10, "ignore_eos_token": True}
    mixture = {"adapters": [{"name": "math", "weight": 0.5}, {"name": "wide", "weight": 0.5}]}
    before = live.answer(parameters=asked)
    mixed = live.answer(parameters=asked, mixture=mixture)
    merged = live.client.put("/admin/merged", json=mixture).json()
    try:
        assert merged["mode"] == "merged"
        assert merged["adapters"] == ["math@1", "wide@1"]
        assert merged["digest"].startswith("sha256:")
        assert live.client.get("/admin/merged").json()["digest"] == merged["digest"]
        assert live.answer(parameters=asked) == before
        assert live.answer(parameters=asked, mixture=mixture) == mixed
    finally:
        restored = live.client.delete("/admin/merged").json()
    assert restored["mode"] == "unmerged"
    assert restored["adapters"] == []
    assert live.answer(parameters=asked) == before
    assert live.client.put("/admin/merged", json={"adapters": []}).status_code == 422
    linear = {**mixture, "combination": "linear"}
    assert live.client.put("/admin/merged", json=linear).status_code == 422


def test_running_requests_finish_on_the_version_that_they_resolved(
    bare: Live, folders: Folders
) -> None:
    bare.publish(folders["math"], "swapped")
    first = text(bare, "swapped@1")
    asked = {"max_new_tokens": 8, "ignore_eos_token": True, "adapter_id": "swapped"}
    body = {"inputs": "hello", "parameters": asked}
    with bare.client.stream("POST", "/generate_stream", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert bare.publish(folders["code"], "swapped").json()["version"] == 2
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data:"))["generated_text"] == first
    assert text(bare, "swapped") == text(bare, "swapped@2") != first


def test_routers_are_listed_with_their_parameters(live: Live) -> None:
    routers = {r["name"]: r for r in live.client.get("/admin/routers").json()["routers"]}
    assert routers["similarity"]["levels"] == ["request", "token"]
    assert "temperature" in routers["similarity"]["parameters"]["properties"]


def test_a_folder_of_adapters_is_published_once(folders: Folders, tmp_path: Path) -> None:
    """Whichever format they are in."""
    directory = tmp_path / "adapters"
    shutil.copytree(folders["math"].parent, directory)
    make_copies(directory / "kept")
    for _ in range(2):
        with serving(tiny_settings(tmp_path, adapters=directory)) as server:
            found = server.client.get("/admin/adapters").json()["adapters"]
            names = [f"{a['name']}@{a['version']}" for a in found]
            assert names == ["code@1", "kept@1", "math@1", "wide@1"]
