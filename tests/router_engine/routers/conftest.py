"""A tiny sentence encoder, a tiny base tokenizer and a real worker process over both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from router_engine.model.tiny import tiny_tokenizer
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder

Centroids = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def encoder_config(
    encoder_dir: Path,
    tokenizer_dir: Path,
    child_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> EncoderConfig:
    endpoint = f"ipc://{tmp_path_factory.mktemp('sockets') / 'encoder'}"
    return EncoderConfig(encoder_dir, tokenizer_dir, endpoint, child_environment, dtype="float32")


@pytest.fixture(scope="session")
def _session_worker(encoder_config: EncoderConfig) -> Iterator[EncoderProcess]:
    process = EncoderProcess(encoder_config)
    process.start()
    yield process
    process.stop()
    assert not process.alive
    assert process.pid is None
    process.stop()  # of one that has ended: nothing


@pytest.fixture
def worker(_session_worker: EncoderProcess) -> EncoderProcess:
    """A live worker, shared by the tests; one that a test killed is started again."""
    if not _session_worker.alive:
        _session_worker.restart()
    return _session_worker


@pytest.fixture
def endpoint(worker: EncoderProcess, encoder_config: EncoderConfig) -> str:
    """Where the live worker listens."""
    return encoder_config.endpoint


@pytest.fixture(scope="session")
def centroids() -> Centroids:
    """Random centroids [32] of three adapters."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=32).astype(np.float32) for name in ("a", "b", "c")}
