"""A real server on a thread: uvicorn on a free loopback port over a real engine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import uvicorn

from router_engine.client.base import EngineClient
from router_engine.client.inline import InlineEngineClient
from router_engine.process.engine_factory import build_engine
from router_engine.process.messages import EngineProcessConfig
from server.http.container import Container
from server.http.heads import heads_within
from server.runtime import EngineFactory
from server.serving import config_of
from server.settings import Settings, load_settings
from tests.support.waiting import HANG_SECONDS

T = TypeVar("T")
LoopKind = Literal["auto", "asyncio"]


def inline_engine(config: EngineProcessConfig, _: Settings) -> EngineClient:
    """The engine on a thread of this process."""
    return InlineEngineClient(partial(build_engine, config))


def tiny_settings(root: Path, **overrides: Any) -> Settings:
    """Settings for the tiny random model, with everything under `root` and no encoder."""
    given = {
        "model": "tiny-random",
        "cache": root,
        "port": 0,
        "encoder": "none",
        "kernels": "reference",
        "kv_blocks": 256,
        "log_level": "error",
        "routing_patience": HANG_SECONDS,  # a machine may be slow to start an encoder
        "body_patience": HANG_SECONDS,  # or to send
    }
    return load_settings(**given | overrides)


class Live:
    """A running server, a client of it, and a way into its event loop."""

    def __init__(self, server: _Server, container: Container) -> None:
        self.container = container
        self.port = server.port
        self.url = f"http://127.0.0.1:{server.port}"
        self.client = httpx.Client(base_url=self.url, timeout=HANG_SECONDS)
        self._loop = server.loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG_SECONDS)

    def generate(self, inputs: str = "hello", **body: Any) -> httpx.Response:
        """POST /generate."""
        return self.client.post("/generate", json={"inputs": inputs, **body})

    def answer(self, inputs: str = "hello", **body: Any) -> dict[str, Any]:
        """The JSON of a successful /generate."""
        response = self.generate(inputs, **body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def frames(self, inputs: str = "hello", **body: Any) -> list[dict[str, Any]]:
        """Every server-sent event of /generate_stream."""
        response = self.client.post("/generate_stream", json={"inputs": inputs, **body})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response.text)

    def publish(self, folder: Path, name: str, **data: Any) -> httpx.Response:
        """Upload every file of a folder."""
        return self.upload("/admin/adapters", folder, name, **data)

    def upload(self, path: str, folder: Path, name: str, **data: Any) -> httpx.Response:
        """POST a folder's files to `path`."""
        files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
        return self.client.post(path, data={"name": name, **data}, files=files)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the engine between two steps."""
        engine = self.container.services.engine
        assert isinstance(engine, InlineEngineClient)
        hold = engine.paused()
        self.run(hold.__aenter__())
        try:
            yield
        finally:
            self.run(hold.__aexit__(None, None, None))


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of every `data:` line."""
    lines = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line.strip() != "[DONE]"]


@contextmanager
def serving(
    settings: Settings,
    engine: EngineFactory = inline_engine,
    loop: LoopKind = "auto",
    head_patience: float = HANG_SECONDS,
) -> Iterator[Live]:
    """Run a server; an error at its start is raised here."""
    container = Container(settings, engine)
    server = _Server(container, loop, head_patience)
    thread = threading.Thread(target=server.run_until_exit, name="server")
    thread.start()
    server.settled.wait()
    live = None
    try:
        if not server.started:
            raise RuntimeError("the server did not start")
        live = Live(server, container)
        yield live
    finally:
        server.should_exit = True
        thread.join()
        if live is not None:
            live.client.close()


class _Server(uvicorn.Server):
    def __init__(self, container: Container, loop: LoopKind, head_patience: float) -> None:
        config = config_of(container)
        config.loop = loop
        config.http = heads_within(head_patience)
        config.timeout_graceful_shutdown = None  # a slow machine cuts no test short
        super().__init__(config)
        self.settled = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self.port = 0

    def run_until_exit(self) -> None:
        with suppress(SystemExit):  # how uvicorn leaves when the lifespan fails
            self.run()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets=sockets)
            if self.started:
                self.port = self.servers[0].sockets[0].getsockname()[1]
        finally:
            self.settled.set()
