"""The encoder worker under its supervisor: killed, it comes back and routes again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from router_engine.model.tiny import tiny_tokenizer
from router_engine.processes.supervisor import Supervisor
from router_engine.routers.encoder.child import EncoderChild
from router_engine.routers.encoder.client import EncoderClient
from router_engine.routers.encoder.config import EncoderConfig
from router_engine.routers.errors import RouterUnavailableError
from server.encoder import encoder_supervisor
from server.models import make_encoder
from tests.server.live import tiny_settings
from tests.support.waiting import HANG_SECONDS


@asynccontextmanager
async def supervised(
    root: Path, patience: float | None = None
) -> AsyncIterator[tuple[Supervisor[EncoderChild], EncoderClient]]:
    settings = tiny_settings(root, encoder="default")
    environment = settings.child_environment(1)
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    endpoint = f"ipc://{root / 'encoder.sock'}"
    config = EncoderConfig(root / "encoder", root / "tokenizer", endpoint, environment)
    prepare = partial(make_encoder, settings, root / "encoder", environment)
    supervisor = encoder_supervisor(config, prepare, patience)
    supervisor.start_soon()
    try:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            yield supervisor, client
    finally:
        await supervisor.close(HANG_SECONDS)


async def _embed_again(client: EncoderClient) -> tuple[int, ...]:
    """The asks that a dead worker held fail; the next wait for the new one."""
    while True:
        try:
            return (await client.embed(["hello"])).shape
        except RouterUnavailableError:
            continue


@pytest.mark.slow
def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path) as (supervisor, client):
            assert (await client.embed(["hello"])).shape == (1, 32)
            assert await supervisor.wait_ready()
            first = supervisor.child
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            assert await _embed_again(client) == (1, 32)
            assert await supervisor.wait_ready()
            assert supervisor.child is not None
            assert supervisor.child.pid != first.pid
            assert supervisor.restarts == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, patience=2.0) as (supervisor, client):
            assert (await client.embed(["hello"])).shape == (1, 32)
            assert await supervisor.wait_ready()
            first = supervisor.child
            assert first is not None
            os.kill(first.pid, signal.SIGSTOP)
            assert await _embed_again(client) == (1, 32)
            assert await supervisor.wait_ready()
            assert supervisor.restarts >= 1

    asyncio.run(scenario())
