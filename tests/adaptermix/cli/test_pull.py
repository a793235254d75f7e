"""`adaptermix pull` of models on a hub: what it says, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from router_engine.model.tiny import save_tiny
from tests.adaptermix.cli.test_edges import require_refused
from tests.adaptermix.cli.test_main import run
from tests.support.hub import Hub

MODEL = "owner/tiny"
ALONE = {"ADAPTERMIX_ENCODER": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_a_hub_id_is_brought_and_its_folder_told(hub: Hub, folder: Path, tmp_path: Path) -> None:
    commit = hub.publish(MODEL, folder, "v1")
    for arguments in ((MODEL,), (MODEL, "--revision", "v1")):
        done = run("pull", *arguments)
        assert done.exit_code == 0, done.stderr
        (told,) = done.stdout.splitlines()
        assert Path(told).name == commit
        assert tmp_path in Path(told).parents


def test_a_log_has_a_few_lines_and_none_for_what_is_there(hub: Hub, folder: Path) -> None:
    hub.publish(MODEL, folder)
    lines = run("pull", MODEL).stderr.splitlines()
    assert lines[0] == f"{MODEL}: checking"
    assert f"{MODEL}: done" in lines
    assert any("downloading" in line and line.endswith(" 100 %") for line in lines)
    assert all(line.startswith(f"{MODEL}: ") for line in lines)
    assert len(lines) < 30
    assert run("pull", MODEL).stderr == ""


def test_without_names_it_is_what_the_settings_name(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = hub.publish(MODEL, folder, "v1")
    (folder / "generation_config.json").write_text("{}")
    second = hub.publish(MODEL, folder)
    settings = {**ALONE, "ADAPTERMIX_MODEL": MODEL, "ADAPTERMIX_REVISION": "v1"}
    for arguments, commit in (
        ((), first),
        ((MODEL,), first),
        (("--revision", "main"), second),
        ((MODEL, "--revision", "main"), second),
    ):
        done = run("pull", *arguments, environment=settings)
        assert done.exit_code == 0, done.stderr
        assert Path(done.stdout.strip()).name == commit


@pytest.mark.parametrize("revision", [None, ""])
def test_what_is_on_this_disk_is_nothing_to_bring(
    hub: Hub, folder: Path, tmp_path: Path, revision: str | None
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    given = {} if revision is None else {"ADAPTERMIX_REVISION": revision}
    for model in (str(folder), str(tmp_path / "x.gguf"), "tiny-random"):
        for arguments, settings in (((model,), {}), ((), {"ADAPTERMIX_MODEL": model})):
            done = run("pull", *arguments, environment={**ALONE, **given, **settings})
            assert (done.exit_code, done.stdout) == (0, ""), done.stderr
            assert done.stderr == f"{model}: nothing to bring\n"
    assert hub.asked == []


def test_the_hub_is_not_needed_for_what_is_there(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(MODEL, folder)
    told = run("pull", MODEL).stdout
    hub.asked.clear()
    assert run("pull", MODEL).stdout == told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run("pull", MODEL).stdout == told
    assert hub.asked == []
    require_refused(run("pull", "owner/other"), "owner/other is not whole in", "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("owner/none",), "the hub shows no model owner/none: correct the name"),
        (("owner/tiny", "--revision", "v9"), "owner/tiny has no revision 'v9': name one of"),
        (("owner/a--b",), "'owner/a--b' is no id on the hub"),
        (("./none",), "model './none' is no directory or file"),
        (("default", "--revision", "v1"), "revision is 'v1', which only a hub id"),
        (("--revision", "v1"), "revision (ADAPTERMIX_REVISION) = 'v1'"),
    ],
)
def test_what_cannot_be_brought_is_one_line(
    hub: Hub, folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    hub.publish(MODEL, folder)
    done = run("pull", *arguments)
    require_refused(done, words)
    assert [line for line in done.stderr.splitlines() if "error:" in line] == [
        done.stderr.splitlines()[-1]
    ]


def test_who_may_not_read_a_model_is_asked_for_a_token(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(MODEL, folder)
    hub.models[MODEL].token = "hf_right"
    require_refused(run("pull", MODEL), "owner/tiny is behind a licence", "HF_TOKEN_PATH")
    wrong = {"HF_TOKEN": "hf_wrong"}
    require_refused(run("pull", MODEL, environment=wrong), "owner/tiny is behind a licence")
    secret = tmp_path / "secret"
    secret.write_text("hf_right\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(secret))
    assert run("pull", MODEL).exit_code == 0


def test_a_hub_that_is_not_there_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    require_refused(run("pull", MODEL), "owner/tiny is not whole in", "the hub cannot be asked")
