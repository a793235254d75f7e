"""Starts an engine process, says its pid on stdout, and stays: a parent for a test to kill."""

from __future__ import annotations

import asyncio
import os
import sys

from router_engine.client.messages import EngineProcessConfig
from router_engine.client.process import ProcessEngineClient
from router_engine.config import EngineConfig


async def main(config: EngineProcessConfig) -> None:
    client = ProcessEngineClient(config, environment=os.environ)
    await client.start()
    sys.stdout.write(f"{client.pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(EngineProcessConfig(EngineConfig(), blobs_url=sys.argv[1])))
