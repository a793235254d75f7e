"""A server and its temporary directory: one with a long path, and one that is cleaned."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from router_engine.client.base import EngineClient
from router_engine.model.tiny import tiny_tokenizer
from router_engine.process.messages import EngineProcessConfig
from server.adapters.encoder import TokenizerFiles
from server.http.container import process_engine
from server.settings import Settings
from tests.server.generation.test_timeouts import children
from tests.server.live import serving, tiny_settings
from tests.support.waiting import wait_for

ROUTED = {"router": {"name": "similarity", "candidates": ["math", "code"]}}


def _remove_files(scratch: Path) -> None:
    for path in scratch.rglob("*"):
        if not path.is_dir():
            path.unlink()


def _remove_one(scratch: Path) -> None:
    next((scratch / "tokenizer").iterdir()).unlink()


CLEANERS: list[Callable[[Path], None]] = [_remove_one, _remove_files, shutil.rmtree]


@pytest.mark.parametrize("clean", CLEANERS)
def test_the_tokenizer_is_written_again_where_files_have_gone(
    tmp_path: Path, clean: Callable[[Path], None]
) -> None:
    scratch = tmp_path / "scratch"
    files = TokenizerFiles(tiny_tokenizer(), scratch / "tokenizer")
    files.write()
    written = _contents(scratch)
    clean(scratch)
    assert _contents(scratch) != written
    files.write()
    assert _contents(scratch) == written


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tokenizer_that_is_there_is_left_alone(tmp_path: Path) -> None:
    files = TokenizerFiles(tiny_tokenizer(), tmp_path / "tokenizer")
    files.write()
    before = {path: path.stat().st_mtime_ns for path in files.folder.iterdir()}
    files.write()
    assert {path: path.stat().st_mtime_ns for path in files.folder.iterdir()} == before


@pytest.mark.slow
def test_with_a_long_path_and_cleaned_it_serves_on(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    scratch: list[Path] = []

    def engine(config: EngineProcessConfig, settings: Settings) -> EngineClient:
        assert config.encoder_endpoint is not None
        scratch.append(Path(config.encoder_endpoint.removeprefix("ipc://")).parent)
        return process_engine(config, settings)

    directory = next(iter(folders.values())).parent
    before = set(children("encoder.worker"))
    settings = tiny_settings(tmp_path, encoder="default", adapters=directory)
    with serving(settings, engine) as live:

        def is_routed() -> bool:
            return live.generate(mixture=ROUTED, parameters={"max_new_tokens": 1}).is_success

        wait_for(is_routed)
        (worker,) = set(children("encoder.worker")) - before
        shutil.rmtree(scratch[0])
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: live.container.restarts["encoder"] == 1)
        wait_for(is_routed)
    assert not scratch[0].exists()
    assert list(long.iterdir()) == []
