"""The encoder worker under its supervisor: killed or hung, it comes back and routes again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from router_engine.model.tiny import tiny_tokenizer
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.errors import RouterUnavailableError
from server.adapters.encoder import encoder_supervisor
from tests.server.live import tiny_settings
from tests.support.waiting import HANG_SECONDS

PATIENCE = 2.0  # seconds without a heartbeat, which one that may compute has many times


async def _embed_again(client: EncoderClient) -> tuple[int, ...]:
    """The asks that a dead worker held fail; the next wait for the new one."""
    while True:
        try:
            return (await client.embed(["hello"])).shape
        except RouterUnavailableError:
            continue


@pytest.mark.slow
def test_a_worker_that_is_killed_or_hangs_is_started_again(tmp_path: Path) -> None:
    environment = tiny_settings(tmp_path, encoder="default").child_environment(1)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    endpoint = f"ipc://{tmp_path / 'encoder.sock'}"
    folders = (tmp_path / "encoder", tmp_path / "tokenizer")
    config = EncoderConfig(*folders, endpoint, environment, make_tiny=True)

    async def scenario() -> None:
        supervisor = encoder_supervisor(config, PATIENCE)
        supervisor.start_soon()
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            assert (await client.embed(["hello"])).shape == (1, 32)
            assert await supervisor.wait_ready()
            for restarts, end in enumerate((signal.SIGKILL, signal.SIGSTOP), start=1):
                child = supervisor.child
                assert child is not None
                os.kill(child.pid, end)
                assert await _embed_again(client) == (1, 32)
                assert await supervisor.wait_ready()
                assert supervisor.child is not None
                assert supervisor.child.pid != child.pid
                assert supervisor.restarts >= restarts
        await supervisor.close(HANG_SECONDS)

    asyncio.run(scenario())
