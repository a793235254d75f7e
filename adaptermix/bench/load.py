"""Closed and open loops of requests, and the moments at which their tokens came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adaptermix.bench.workload import Job, poisson_arrivals


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request. Moments are seconds on one monotonic clock."""

    sent: float  # in an open loop: when it was due
    arrivals: tuple[float, ...]  # of each event with text; one event mostly brings one token
    done: float
    prompt_tokens: int
    output_tokens: int

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between each two events."""
        later = self.arrivals[1:]
        return [b - a for a, b in zip(self.arrivals, later, strict=False)]

    @property
    def seconds(self) -> float:
        """Seconds from sending the request to its end."""
        return self.done - self.sent

    @property
    def token_seconds(self) -> float:
        """Mean seconds a token after the first; 0 for an answer of one token."""
        later = self.output_tokens - 1
        return (self.arrivals[-1] - self.arrivals[0]) / later if later else 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """All requests of one case under one load, once."""

    samples: tuple[Sample, ...]
    seconds: float  # from the first request sent to the last one done

    @property
    def output_tokens(self) -> int:
        return sum(sample.output_tokens for sample in self.samples)

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Load:
    """Clients that each have one request in flight (closed), or requests a second (open)."""

    clients: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        return f"{self.clients}" if self.rate is None else f"{self.rate:g}/s"

    @property
    def title(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:g} requests/s"


Send = Callable[[Job, float], Awaitable[Sample]]  # (job, moment that counts as sent)
OnDone = Callable[[], object]
Item = TypeVar("Item")


async def drive(send: Send, load: Load, jobs: Sequence[Job], seed: int, on_done: OnDone) -> Round:
    """Send all jobs under the load. Raises BenchmarkError as soon as one fails."""
    if load.rate is not None:
        return await open_loop(send, jobs, poisson_arrivals(len(jobs), load.rate, seed), on_done)
    return await closed_loop(send, jobs, load.clients or 1, on_done)


async def closed_loop(
    send: Send, jobs: Sequence[Job], clients: int, on_done: OnDone = lambda: None
) -> Round:
    """`clients` at a time: each takes the next job when its last has ended."""
    samples: list[Sample] = []

    async def one(job: Job) -> None:
        samples.append(await send(job, time.perf_counter()))
        on_done()

    started = time.perf_counter()
    await each(jobs, clients, one)
    return Round(tuple(samples), time.perf_counter() - started)


async def each(
    items: Iterable[Item], clients: int, work: Callable[[Item], Awaitable[None]]
) -> None:
    """`clients` at a time: each takes the next item when its last has ended.

    Raises what `work` raises, as soon as it does; the others are cancelled.
    """
    waiting = iter(items)

    async def client() -> None:
        for item in waiting:
            await work(item)

    await _together([client() for _ in range(clients)])


async def open_loop(
    send: Send, jobs: Sequence[Job], offsets: Sequence[float], on_done: OnDone = lambda: None
) -> Round:
    """Each job at its own moment, however many are still running.

    A request counts as sent when it was due, so that a client which falls behind hides nothing.
    """
    started = time.perf_counter()
    samples: list[Sample] = []

    async def one(job: Job, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        samples.append(await send(job, due))
        on_done()

    pairs = zip(jobs, offsets, strict=True)
    await _together([one(job, started + offset) for job, offset in pairs])
    return Round(tuple(samples), time.perf_counter() - started)


async def _together(parts: Sequence[Awaitable[None]]) -> None:
    async def run(part: Awaitable[None]) -> None:
        await part

    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(run(part))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
