"""The worker's life as a process: start, failure to start, restart, death with its parent."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.errors import RouterUnavailableError
from tests.support.waiting import HANG_SECONDS

_PARENT = """
import os, sys
from pathlib import Path
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.errors import RouterUnavailableError

encoder, tokenizer, endpoint = sys.argv[1:]
process = EncoderProcess(EncoderConfig(Path(encoder), Path(tokenizer), endpoint, dict(os.environ)))
process.start()
try:
    process.start()
except RouterUnavailableError as error:
    assert "runs already" in str(error)
    assert process.alive
else:
    sys.exit("a second worker was started")
sys.stdout.write(f"{process.pid}\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def config(encoder_config: EncoderConfig, tmp_path: Path) -> EncoderConfig:
    """A place of its own, so that the shared worker is left alone."""
    return dataclasses.replace(encoder_config, endpoint=f"ipc://{tmp_path / 'encoder'}")


@pytest.mark.parametrize("wrong", ["encoder", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_a_worker_that_cannot_start_says_why(
    config: EncoderConfig, tmp_path: Path, wrong: str
) -> None:
    process = EncoderProcess(
        dataclasses.replace(config, encoder_dir=tmp_path)
        if wrong == "encoder"
        else dataclasses.replace(config, tokenizer_dir=tmp_path)
    )
    with pytest.raises(RouterUnavailableError, match=str(tmp_path)):
        process.start()
    assert not process.alive


def test_an_endpoint_that_cannot_be_bound_is_reported(config: EncoderConfig) -> None:
    process = EncoderProcess(dataclasses.replace(config, endpoint="nowhere"))
    with pytest.raises(RouterUnavailableError, match="Invalid argument"):
        process.start()


def test_a_worker_that_is_too_slow_is_stopped(config: EncoderConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # nobody writes into it: who reads it is never ready
    process = EncoderProcess(dataclasses.replace(config, encoder_dir=tmp_path, start_seconds=0.01))
    with pytest.raises(RouterUnavailableError, match=r"not ready after 0\.01 s"):
        process.start()
    assert not process.alive


def test_a_worker_is_started_once_and_ends_when_its_parent_is_killed(config: EncoderConfig) -> None:
    arguments = [str(config.encoder_dir), str(config.tokenizer_dir), config.endpoint]
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(config.environment),
    ) as parent:
        assert parent.stdout is not None
        worker = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.send_signal(signal.SIGKILL)
            ended, _, _ = select.select([worker], [], [], HANG_SECONDS)
            assert ended == [worker]
        finally:
            os.close(worker)
