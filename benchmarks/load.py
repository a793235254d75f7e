"""Closed-loop load: a fixed number of clients, each with one request in flight at any time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

Clock = Callable[[], float]


class BenchmarkError(RuntimeError):
    """The server did not do what the benchmark asked for: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request. Moments are seconds on one monotonic clock."""

    sent: float
    tokens_at: tuple[float, ...]  # when each generated token arrived
    done: float
    prompt_tokens: int

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.tokens_at[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between each two tokens, one fewer than there are tokens."""
        later = self.tokens_at[1:]
        return [b - a for a, b in zip(self.tokens_at, later, strict=False)]

    @property
    def seconds(self) -> float:
        """Seconds from sending the request to its end."""
        return self.done - self.sent


@dataclass(frozen=True, slots=True)
class Round:
    """All requests of one case at one concurrency, once."""

    samples: tuple[Sample, ...]
    seconds: float  # from the first request sent to the last one done

    @property
    def output_tokens(self) -> int:
        return sum(len(sample.tokens_at) for sample in self.samples)

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


async def stream_one(
    client: httpx.AsyncClient, body: dict[str, Any], clock: Clock = time.perf_counter
) -> Sample:
    """Send one streamed request and time its tokens.

    Raises BenchmarkError for a refusal, an error in mid-stream, or an answer of another length than
    `parameters.max_new_tokens`: a shorter one would look faster than it is.
    """
    arrivals: list[float] = []
    details: dict[str, Any] | None = None
    sent = clock()
    async with client.stream("POST", "/generate", json={**body, "stream": True}) as response:
        if response.status_code != httpx.codes.OK:
            text = (await response.aread()).decode(errors="replace")
            raise BenchmarkError(f"the server answered {response.status_code}: {text}")
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            frame = json.loads(line[len("data:") :])
            if "error" in frame:
                raise BenchmarkError(f"a stream ended in an error: {frame['error']}")
            arrivals.append(clock())
            details = frame.get("details") or details
    done = clock()
    asked = body["parameters"]["max_new_tokens"]
    if details is None or len(arrivals) != asked:
        raise BenchmarkError(f"{len(arrivals)} tokens came instead of {asked}")
    return Sample(sent, tuple(arrivals), done, details["prompt_tokens"])


async def closed_loop(
    client: httpx.AsyncClient,
    bodies: Sequence[dict[str, Any]],
    concurrency: int,
    on_done: Callable[[], None] = lambda: None,
) -> Round:
    """Send all `bodies`, `concurrency` at a time: each client takes the next when its last ends."""
    waiting: Iterator[dict[str, Any]] = iter(bodies)
    samples: list[Sample] = []

    async def one_client() -> None:
        for body in waiting:
            samples.append(await stream_one(client, body))
            on_done()

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_client())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return Round(tuple(samples), time.perf_counter() - started)
