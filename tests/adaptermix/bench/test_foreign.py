"""A benchmark that is pointed at another server, or at none, says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from adaptermix.bench.clients import GenerateClient, LoadClient, OpenAIClient, http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.server import info
from adaptermix.bench.workload import Job
from tests.server.foreign import Foreign, foreign_server

BODIES = [
    b"<html>hello</html>",
    b'{"a": 1}',
    b"[]",
    b"\xff{",
    b"data: 5\n\n",
    b"data: [1]\n\n",
    b"data: {}\n\n",
    b"data: <\n\n",
    b"data: \xff\n\n",
    b'data: {"details": 5}\n\n',
    b'data: {"usage": 5, "choices": []}\n\n',
    b'data: {"usage": {"completion_tokens": 1}, "choices": []}\n\n',
    b'data: {"choices": [5]}\n\n',
]


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    with foreign_server() as server:
        yield server


def ask(url: str, target: str) -> None:
    async def send() -> None:
        async with http_client(url) as http:
            client: LoadClient = GenerateClient(http)
            if target == "openai":
                client = OpenAIClient(http, "model")
            await client.send(Job("hello", 1), 0.0)

    asyncio.run(send())


@pytest.mark.parametrize("body", BODIES)
def test_another_servers_answer_is_no_measurement(foreign: Foreign, body: bytes) -> None:
    foreign.answer(body, "text/event-stream")
    with pytest.raises(BenchmarkError):
        info(foreign.url)
    for target in ("generate", "openai"):
        with pytest.raises(BenchmarkError):
            ask(foreign.url, target)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://a..b", "nonsense", "ftp://x", ""])
def test_nobody_that_answers_is_said(url: str) -> None:
    with pytest.raises(BenchmarkError):
        info(url)
    for target in ("generate", "openai"):
        with pytest.raises(BenchmarkError):
            ask(url, target)
