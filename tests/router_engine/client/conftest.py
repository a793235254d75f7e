"""Engine clients over the tiny random model and a store in a temporary directory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from adapters_store.store import AdapterStore
from router_engine.client.inline import InlineEngineClient
from router_engine.client.process_client import ProcessEngineClient
from router_engine.config import CacheConfig, EngineConfig
from router_engine.process.engine_factory import build_engine
from router_engine.process.messages import EngineProcessConfig
from tests.support.tiny import make_lora_folder

Client = InlineEngineClient | ProcessEngineClient


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def environment() -> Mapping[str, str]:
    """What a child process gets: two of them on two cores must not spin against each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def blobs_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, blobs_url: str) -> Iterator[AdapterStore]:
    store = AdapterStore.open(tmp_path_factory.mktemp("store"), blobs_url=blobs_url)
    yield store
    store.close()


@pytest.fixture(scope="module")
def config(blobs_url: str) -> EngineProcessConfig:
    return EngineProcessConfig(EngineConfig(cache=CacheConfig(num_blocks=512)), blobs_url=blobs_url)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of unequal rank."""
    root = tmp_path_factory.mktemp("folders")
    return {
        "math": make_lora_folder(root / "math", rank=4, seed=1),
        "code": make_lora_folder(root / "code", rank=2, seed=2),
    }


def make_client(kind: str, config: EngineProcessConfig, environment: Mapping[str, str]) -> Client:
    if kind == "inline":
        return InlineEngineClient(partial(build_engine, config))
    return ProcessEngineClient(config, environment=environment)


@pytest.fixture(scope="module", params=["inline", "process"])
async def client(
    request: pytest.FixtureRequest,
    anyio_backend: str,
    config: EngineProcessConfig,
    environment: Mapping[str, str],
) -> AsyncIterator[Client]:
    client = make_client(request.param, config, environment)
    await client.start()
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def digests(
    client: Client, store: AdapterStore, folders: Mapping[str, Path]
) -> dict[str, str]:
    """The digests of the two adapters, published for the client's base model."""
    base = (await client.info()).base
    return {name: store.publish(name, folder, base=base).digest for name, folder in folders.items()}
