"""The load generator against a small HTTP server that speaks the wire format."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.cases import request_body
from benchmarks.load import BenchmarkError, Round, Sample, closed_loop, stream_one

Answer = Callable[[dict[str, Any]], Response]


def frames(body: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    for index in range(count):
        token = {"id": index, "text": "a", "logprob": -1.0, "special": False}
        last = index == count - 1
        yield {
            "token": token,
            "generated_text": "a" * count if last else None,
            "details": {"prompt_tokens": 50, "generated_tokens": count} if last else None,
        }


def events(parts: Iterator[dict[str, Any]]) -> StreamingResponse:
    async def text() -> AsyncIterator[str]:
        yield ": a comment that keeps the connection alive\r\n\r\n"
        for part in parts:
            yield f"data: {json.dumps(part)}\r\n\r\n"

    return StreamingResponse(text(), media_type="text/event-stream")


def client_of(answer: Answer) -> httpx.AsyncClient:
    async def generate(request: Request) -> Response:
        return answer(await request.json())

    app = Starlette(routes=[Route("/generate", generate, methods=["POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bench")


def measure(answer: Answer, count: int = 1, concurrency: int = 1) -> Round:
    async def run() -> Round:
        async with client_of(answer) as client:
            return await closed_loop(client, [request_body("text", 3, None)] * count, concurrency)

    return asyncio.run(run())


def test_every_token_is_timed_in_order() -> None:
    ticks = iter(range(100))

    async def run() -> Sample:
        async with client_of(lambda body: events(frames(body, 3))) as client:
            body = request_body("text", 3, None)
            return await stream_one(client, body, clock=lambda: float(next(ticks)))

    sample = asyncio.run(run())
    assert sample == Sample(sent=0, tokens_at=(1, 2, 3), done=4, prompt_tokens=50)
    assert (sample.ttft, sample.gaps, sample.seconds) == (1, [1, 1], 4)


def test_all_requests_are_sent_and_counted() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Response:
        seen.append(body)
        return events(frames(body, 3))

    result = measure(answer, count=7, concurrency=3)
    assert len(seen) == len(result.samples) == 7
    assert result.output_tokens == 21
    assert all(body["stream"] and body["parameters"]["ignore_eos_token"] for body in seen)


def test_a_refusal_is_an_error_that_quotes_the_server() -> None:
    with pytest.raises(BenchmarkError, match=r"422.*no such adapter"):
        measure(lambda body: JSONResponse({"error": "no such adapter"}, 422))


def test_an_error_in_mid_stream_is_an_error() -> None:
    def answer(body: dict[str, Any]) -> Response:
        failure = {"error": "the engine died", "error_type": "engine"}
        return events(iter([*list(frames(body, 2))[:1], failure]))

    with pytest.raises(BenchmarkError, match="the engine died"):
        measure(answer, count=4, concurrency=2)


def test_a_short_answer_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="2 tokens came instead of 3"):
        measure(lambda body: events(frames(body, 2)))
