"""Hundreds of uploads that mean harm or went wrong: each has an end that is documented, soon."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.server.hostile import archives, configs, forms, tensors
from tests.server.hostile.cases import Case, Good
from tests.server.live import Live, serving, tiny_settings

TABLE: dict[str, Case] = {
    f"{kind.__name__.rpartition('.')[2]}: {name}": case
    for kind in (archives, tensors, configs, forms)
    for name, case in kind.CASES.items()
}
MOST_TOLD = 2048  # bytes of an answer that refuses


@dataclass(frozen=True)
class Target:
    """One server for all cases, and where it puts what it needs for a while."""

    live: Live
    good: Good
    scratch: Path
    store: Path

    def leavings(self) -> set[str]:
        """What lies in temporary folders."""
        kept = {path.name for path in self.scratch.iterdir()}
        staged = self.store.rglob("*.tmp*")
        return kept | {str(path.relative_to(self.store)) for path in staged}

    def send(self, case: Case, path: str, name: str) -> httpx.Response:
        made = case.make(self.good)
        if isinstance(made, tuple):
            content, kind = made
            headers = {"Content-Type": kind} if kind else {}
            return self.live.client.post(path, content=content, headers=headers)
        named = any(field == "name" for field, _ in made)
        sent = made if named else [("name", (None, name)), *made]
        return self.live.client.post(path, files=list(sent))


@pytest.fixture(scope="module")
def target(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root, scratch = tmp_path_factory.mktemp("table"), tmp_path_factory.mktemp("scratch")
    good = {
        file.name: file.read_bytes()
        for file in folders["math"].iterdir()
        if file.name.startswith("adapter_")
    }
    before = tempfile.tempdir
    tempfile.tempdir = str(scratch)
    try:
        with serving(tiny_settings(root)) as live:
            yield Target(live, good, scratch, root)
    finally:
        tempfile.tempdir = before


@pytest.mark.parametrize("name", TABLE)
def test_an_upload_has_its_end(target: Target, name: str) -> None:
    case = TABLE[name]
    before = target.leavings()
    answer = target.send(case, "/admin/adapters", "case")
    told = f"{answer.status_code}: {answer.text[:600]}"
    assert answer.status_code in case.statuses, told
    if answer.status_code == 201:
        made = answer.json()
        label = f"{made['name']}@{made['version']}"
        loaded = target.live.client.post(f"/admin/adapters/{label}/load")
        assert loaded.status_code == 200, loaded.text
        gone = target.live.client.delete(f"/admin/adapters/{made['name']}", params={"force": True})
        assert gone.status_code == 200, gone.text
    else:
        assert set(answer.json()) == {"error", "error_type"}, told
        assert len(answer.content) <= MOST_TOLD, told
        assert case.said in answer.json()["error"], told
    assert target.leavings() == before


@pytest.mark.parametrize("name", list(TABLE)[::7])
def test_a_check_says_the_same(target: Target, name: str) -> None:
    case = TABLE[name]
    answer = target.send(case, "/admin/adapters/check", "case")
    if answer.status_code == 200:
        report = answer.json()
        assert report["loads"] == (201 in case.statuses) or len(case.statuses) > 1
        assert len(answer.content) <= 64 << 10
    else:
        assert answer.status_code in case.statuses, answer.text[:600]


def test_the_server_goes_on(target: Target, folders: dict[str, Path]) -> None:
    assert target.live.publish(folders["math"], "math").status_code == 201
    answer = target.live.answer(parameters={"adapter_id": "math", "max_new_tokens": 2})
    assert answer["generated_text"]


@pytest.mark.parametrize("kind", forms.LINES)
def test_texts_that_are_set_have_the_same_end(
    target: Target, folders: dict[str, Path], kind: str
) -> None:
    data, statuses = forms.LINES[kind]
    if target.live.client.get("/admin/adapters/texts").status_code == 404:
        assert target.live.publish(folders["code"], "texts").status_code == 201
    path = "/admin/adapters/texts/texts"
    answer = target.live.client.put(path, files=[("texts", ("texts.jsonl", data))])
    assert answer.status_code == (200 if statuses == (201,) else 422), answer.text[:600]
    assert len(answer.content) <= MOST_TOLD
    twice = target.live.client.put(path, files=[("texts", ("t", b'"a"'))] * 2)
    assert twice.status_code == 422


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 200
