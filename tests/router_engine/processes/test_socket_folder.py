"""Sockets have a place whatever the temporary directory is called, or it is said what to do."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from router_engine.processes import socket_folder as sockets
from router_engine.processes.socket_folder import make_again, socket_folder

NAMES = ("engine", "socket", "encoder.sock")


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path, however long pytest's is."""
    path = tempfile.mkdtemp(dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


def _bind(folder: str) -> None:
    context = zmq.Context[zmq.Socket[bytes]]()
    for name in NAMES:
        socket = context.socket(zmq.DEALER)
        socket.bind(f"ipc://{Path(folder) / name}")
        socket.close(linger=0)
    context.term()


def _called(base: Path, length: int) -> bytes:
    """A directory's path of so many bytes."""
    return os.fsencode(base / ("t" * (length - len(os.fsencode(base)) - 1)))


@pytest.mark.parametrize("length", [*range(64, 112), 250])
def test_every_length_of_the_temporary_directory_will_do(
    monkeypatch: pytest.MonkeyPatch, base: Path, length: int
) -> None:
    _will_do(monkeypatch, _called(base, length))


@pytest.mark.parametrize("name", ["\N{SNOWMAN}".encode() * 18, b"\xff\xfe"], ids=["wide", "bytes"])
def test_what_counts_are_bytes_of_text(
    monkeypatch: pytest.MonkeyPatch, base: Path, name: bytes
) -> None:
    _will_do(monkeypatch, os.path.join(os.fsencode(base), name))


def _will_do(monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    os.mkdir(path)
    monkeypatch.setattr(tempfile, "tempdir", os.fsdecode(path))
    with socket_folder() as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        _bind(folder)
        fits = len(path) + len("/adaptermix-12345678/encoder.sock") <= zmq.IPC_PATH_MAX_LEN
        is_text = path.isascii() or b"\xff" not in path
        assert (Path(folder).parent == Path(os.fsdecode(path))) is (fits and is_text)
    assert not os.path.exists(folder)


def test_without_a_short_one_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    monkeypatch.setattr(sockets, "_SHORT", str(tmp_path / "none"))
    with pytest.raises(OSError, match=r"'.*/t{100}', .* set TMPDIR to a shorter one"):
        socket_folder()


def test_a_folder_that_was_taken_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    for _ in range(2):  # it is kept where it is there
        make_again(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match="another user"):
        make_again(tmp_path)
