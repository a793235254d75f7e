"""The load generators, and the HTTP clients against small servers that speak the wire formats."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adaptermix.bench.clients import GenerateClient, LoadClient, OpenAIClient, http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, Round, Sample, closed_loop, drive, open_loop
from adaptermix.bench.workload import CaseMixture, Job

Frames = Iterable[dict[str, Any]]
Answer = Callable[[dict[str, Any]], Frames | web.Response]
JOB = Job("text", 3)


def frames(count: int) -> Iterator[dict[str, Any]]:
    """As /generate sends them."""
    for index in range(count):
        token = {"id": index, "text": "a", "logprob": -1.0, "special": False}
        last = index == count - 1
        yield {
            "token": token,
            "generated_text": "a" * count if last else None,
            "details": {"prompt_tokens": 50, "generated_tokens": count} if last else None,
        }


def chunks(texts: list[str], tokens: int) -> Iterator[dict[str, Any]]:
    """As /v1/completions sends them: a closing chunk without text, then the usage."""
    for text in texts:
        yield {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    yield {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": tokens}}


async def stream(request: web.Request, frames: Frames) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b": a comment that keeps the connection alive\r\n\r\n")
    for frame in frames:
        await response.write(f"data: {json.dumps(frame)}\r\n\r\n".encode())
    await response.write(b"data: [DONE]\r\n\r\n")
    return response


async def asking(
    answer: Answer, path: str, use: Callable[[aiohttp.ClientSession], Awaitable[Any]]
) -> Any:
    async def reply(request: web.Request) -> web.StreamResponse:
        replied = answer(await request.json())
        return replied if isinstance(replied, web.Response) else await stream(request, replied)

    app = web.Application()
    app.router.add_post(path, reply)
    async with TestServer(app) as server, http_client(str(server.make_url("/"))) as http:
        return await use(http)


def measure(answer: Answer, count: int = 1, clients: int = 1) -> Round:
    async def use(http: aiohttp.ClientSession) -> Round:
        return await closed_loop(GenerateClient(http).send, [JOB] * count, clients)

    one = asyncio.run(asking(answer, "/generate", use))
    assert isinstance(one, Round)
    return one


def complete(answer: Answer, job: Job = JOB) -> Sample:
    async def use(http: aiohttp.ClientSession) -> Sample:
        ticks = iter(range(1, 100))
        client: LoadClient = OpenAIClient(http, "base", clock=lambda: float(next(ticks)))
        return await client.send(job, 0.0)

    sample = asyncio.run(asking(answer, "/v1/completions", use))
    assert isinstance(sample, Sample)
    return sample


def test_every_token_is_timed_in_order() -> None:
    ticks = iter(range(1, 100))

    async def use(http: aiohttp.ClientSession) -> Sample:
        client = GenerateClient(http, clock=lambda: float(next(ticks)))
        return await client.send(JOB, 0.0)

    sample = asyncio.run(asking(lambda body: frames(3), "/generate", use))
    assert sample == Sample(0, (1, 2, 3), 4, prompt_tokens=50, output_tokens=3)
    assert (sample.ttft, sample.gaps, sample.seconds, sample.token_seconds) == (1, [1, 1], 4, 1)


def test_all_requests_are_sent_and_counted() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Frames:
        seen.append(body)
        return frames(3)

    result = measure(answer, count=7, clients=3)
    assert len(seen) == len(result.samples) == 7
    assert result.output_tokens == 21
    assert all(body["stream"] and body["parameters"]["ignore_eos_token"] for body in seen)


def test_a_refusal_is_an_error_that_quotes_the_server() -> None:
    with pytest.raises(BenchmarkError, match=r"422.*no such adapter"):
        measure(lambda body: web.json_response({"error": "no such adapter"}, status=422))


def test_an_error_in_mid_stream_is_an_error() -> None:
    def answer(body: dict[str, Any]) -> Frames:
        failure = {"error": "the engine died", "error_type": "engine"}
        return [*list(frames(2))[:1], failure]

    with pytest.raises(BenchmarkError, match="the engine died"):
        measure(answer, count=4, clients=2)


def test_a_short_answer_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="2 tokens came instead of 3"):
        measure(lambda body: frames(2))


class TestOpenAI:
    def test_tokens_are_those_of_the_usage_and_times_those_of_the_events(self) -> None:
        seen: list[dict[str, Any]] = []

        def answer(body: dict[str, Any]) -> Frames:
            seen.append(body)
            return chunks(["a", "bc"], tokens=3)

        sample = complete(answer)
        assert sample == Sample(0, (1, 2), 3, prompt_tokens=50, output_tokens=3)
        assert sample.token_seconds == 0.5
        assert seen[0]["model"] == "base"
        assert seen[0]["ignore_eos"]
        assert seen[0]["stream_options"] == {"include_usage": True}

    def test_an_adapter_is_a_model(self) -> None:
        seen: list[str] = []

        def answer(body: dict[str, Any]) -> Frames:
            seen.append(body["model"])
            return chunks(["a"], tokens=3)

        complete(answer, Job("text", 3, CaseMixture(("math",), (1.0,))))
        assert seen == ["math"]

    def test_a_mixture_is_refused(self) -> None:
        mixed = Job("text", 3, CaseMixture(("a", "b"), (0.5, 0.5)))
        with pytest.raises(BenchmarkError, match="use base, one or many"):
            complete(lambda body: chunks([], 3), mixed)

    def test_a_short_answer_is_an_error(self) -> None:
        with pytest.raises(BenchmarkError, match="2 tokens came instead of 3"):
            complete(lambda body: chunks(["a"], tokens=2))

    def test_a_server_that_counts_nothing_is_an_error(self) -> None:
        with pytest.raises(BenchmarkError, match="no usage"):
            complete(lambda body: list(chunks(["a"], tokens=3))[:-1])


class Crowd:
    """Answers when so many requests are there at once."""

    def __init__(self, size: int) -> None:
        self.most = 0
        self._inside = 0
        self._size = size
        self._full = asyncio.Event()

    async def send(self, job: Job, sent: float) -> Sample:
        self._inside += 1
        self.most = max(self.most, self._inside)
        if self._inside == self._size:
            self._full.set()
        await self._full.wait()
        self._inside -= 1
        return Sample(sent, (sent + 1, sent + 2), time.perf_counter(), 1, 2)


def test_a_closed_loop_has_so_many_requests_in_flight_and_no_more() -> None:
    async def run() -> int:
        crowd = Crowd(3)
        await closed_loop(crowd.send, [JOB] * 9, 3)
        return crowd.most

    assert asyncio.run(run()) == 3


def test_an_open_loop_sends_whatever_is_still_running() -> None:
    async def run() -> tuple[int, Round]:
        crowd = Crowd(5)
        one = await open_loop(crowd.send, [JOB] * 5, [0.0, 0.0, 0.001, 0.001, 0.002])
        return crowd.most, one

    most, one = asyncio.run(run())
    assert most == 5
    # Latency counts from when a request was due, not from when the client came to send it.
    moments = sorted(sample.sent for sample in one.samples)
    assert [moment - moments[0] for moment in moments] == pytest.approx([0, 0, 1e-3, 1e-3, 2e-3])


def test_a_rate_drives_an_open_loop() -> None:
    async def run() -> Round:
        return await drive(Crowd(4).send, Load(rate=2000), [JOB] * 4, 0, lambda: None)

    assert len(asyncio.run(run()).samples) == 4
    assert (Load(rate=0.5).label, Load(clients=8).title) == ("0.5/s", "8 clients")
