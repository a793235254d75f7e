"""What `adaptermix adapters` sends: just what was checked, under a name that a server takes."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adaptermix.cli.uploading import stem_of
from adapters_store.texts import MAX_TEXTS_BYTES
from server.schemas.adapters import ADAPTER_EXAMPLE
from tests.adaptermix.cli.test_main import ok, run
from tests.server.foreign import Foreign, foreign_server
from tests.server.live import Live

TEXTS = "".join(json.dumps(f"text {number}") + "\n" for number in range(3)).encode()


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    with foreign_server() as server:
        yield server


@contextmanager
def piped(data: bytes) -> Iterator[str]:
    """The path of a pipe that holds data, as a shell's <(command) is."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            with os.fdopen(writing, "wb") as file:
                file.write(data)
        except BrokenPipeError:  # nobody reads on
            pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


def archives(folder: Path) -> dict[str, bytes]:
    """A folder as an archive of each kind."""
    found = {}
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for file in files:
                tar.add(file, file.name)
        found[mode] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return found | {"zip": buffer.getvalue()}


def texts_of(live: Live, name: str) -> list[str]:
    return [
        json.loads(line)
        for line in ok("adapters", "texts", name, "--url", live.url).split("\n")
        if line
    ]


def test_texts_from_a_pipe_arrive(bare: Live, folders: dict[str, Path], tmp_path: Path) -> None:
    at = ("--url", bare.url)
    with piped(TEXTS) as pipe:
        ok("adapters", "publish", str(folders["math"]), "--name", "piped", "--texts", pipe, *at)
    assert texts_of(bare, "piped") == ["text 0", "text 1", "text 2"]
    with piped(b'"other"\n') as pipe:
        ok("adapters", "texts", "piped", pipe, *at)
    assert texts_of(bare, "piped") == ["other"]
    growing = tmp_path / "texts.jsonl"  # a file may have no length, and be regular
    growing.write_bytes(TEXTS)
    ok("adapters", "texts", "piped", str(growing), *at)
    assert len(texts_of(bare, "piped")) == 3


def test_texts_that_no_server_takes_are_not_sent(
    foreign: Foreign, folders: dict[str, Path]
) -> None:
    foreign.answer(json.dumps(ADAPTER_EXAMPLE).encode())
    for data in (b"{\n", b'"\xff"\n', b'""\n', b" " * (MAX_TEXTS_BYTES + 1)):
        for command in (("publish", str(folders["math"]), "--texts"), ("texts", "a")):
            with piped(data) as pipe:
                result = run("adapters", *command, pipe, "--url", foreign.url)
            assert result.exit_code == 1, result.output
            assert "nothing was sent: texts" in result.stderr
    assert foreign.got == []


def test_an_archive_from_a_pipe_is_checked_and_sent(bare: Live, folders: dict[str, Path]) -> None:
    for number, data in enumerate(archives(folders["code"]).values(), start=1):
        with piped(data) as pipe:
            said = ok("adapters", "publish", pipe, "--name", "packed", "--url", bare.url)
        assert f"published packed@{number}" in said
        with piped(data) as pipe:
            result = run("adapters", "publish", pipe, "--url", bare.url)
        assert result.exit_code == 1
        assert "--name" in result.stderr
    with piped(b"no archive at all") as pipe:
        result = run("adapters", "check", pipe, "--name", "packed", "--url", bare.url)
    assert result.exit_code == 1
    assert "nothing was sent" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("FOLDER", "--name", "my adapter"),
        ("FOLDER", "--name", ""),
        ("FOLDER", "--name", ".hidden"),
        ("FOLDER", "--name", "a/b"),
        ("FOLDER", "--name", "n" * 129),
        ("FOLDER", "--name", "\u00fc"),
        ("FOLDER", "--tag", "a b"),
        ("FOLDER", "--tag", "good", "--tag", ""),
        ("my adapter/",),
        ("my adapter.zip",),
    ],
)
def test_a_name_that_no_server_takes_is_not_sent(
    foreign: Foreign, folders: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    foreign.answer(json.dumps(ADAPTER_EXAMPLE).encode())
    shutil.copytree(folders["math"], tmp_path / "my adapter")
    (tmp_path / "my adapter.zip").write_bytes(archives(folders["math"])["zip"])
    source = folders["math"] if arguments[0] == "FOLDER" else f"{tmp_path}/{arguments[0]}"
    for command in ("publish", "check"):
        result = run("adapters", command, str(source), *arguments[1:], "--url", foreign.url)
        assert result.exit_code == 1, result.output
        assert "nothing was sent" in result.stderr
        assert "use letters, digits" in result.stderr
    assert foreign.got == []


def test_an_import_refuses_a_name_before_its_work(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    out = tmp_path / "out"
    folder = str(tmp_path / "model")
    result = run("adapters", "import", "moa-hf", folder, "--out", str(out), "--name", "a b")
    assert result.exit_code == 2
    assert "use letters, digits" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("file", "stem"),
    [
        ("llama-3.1-lora.tar", "llama-3.1-lora"),
        ("v1.2.tar.gz", "v1.2"),
        ("a.b.tgz", "a.b"),
        ("A.ZIP", "A"),
        ("a.zip.tar", "a.zip"),
        ("a.TAR.GZ", "a"),
    ],
)
def test_an_archive_gives_its_name_without_its_ending(tmp_path: Path, file: str, stem: str) -> None:
    (tmp_path / file).touch()
    assert stem_of(tmp_path / file) == stem


def test_a_folder_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v1.5" / "below").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("v1.5")
    monkeypatch.chdir(tmp_path / "v1.5" / "below")
    assert stem_of(Path("..")) == "v1.5"
    assert stem_of(Path(".")) == "below"
    assert stem_of(tmp_path / "latest") == "latest"
    assert stem_of(tmp_path / "v1.5") == "v1.5"
