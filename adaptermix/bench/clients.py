"""Clients that ask a job of a server: AdapterMix' own route, or OpenAI's completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import msgspec

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Sample
from adaptermix.bench.workload import Job

Clock = Callable[[], float]

_LONGEST_LINE = 1 << 24  # bytes: the last event of an answer holds all of it


def http_client(url: str) -> aiohttp.ClientSession:
    """Waits as long as it takes, and opens as many connections as there are requests.

    Its parser is compiled: a client on the server's own machine takes as little of it as it can.
    Raises BenchmarkError for an address that is none.
    """
    if not url.startswith(("http://", "https://")):
        raise BenchmarkError(f"{url!r} is no server's address: use http://HOST:PORT")
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        read_bufsize=_LONGEST_LINE,
    )


@contextmanager
def _understood() -> Iterator[None]:
    """Raises BenchmarkError where nobody answers, or another server than was meant."""
    try:
        yield
    except (aiohttp.ClientError, msgspec.DecodeError, UnicodeError) as error:
        raise BenchmarkError(f"the server cannot be asked: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:  # of its JSON
        raise BenchmarkError(f"the server's answer is of another shape: {error!r}") from error


class LoadClient(Protocol):
    """Sends one streamed request and times its tokens.

    Raises BenchmarkError for a refusal, an error in mid-stream, or an answer of another length than
    was asked for: a shorter one would look faster than it is.
    """

    async def send(self, job: Job, sent: float) -> Sample: ...


class GenerateClient:
    """AdapterMix' POST /generate: every event is one token."""

    def __init__(self, http: aiohttp.ClientSession, clock: Clock = time.perf_counter) -> None:
        self._http = http
        self._clock = clock

    async def send(self, job: Job, sent: float) -> Sample:
        """See `LoadClient`."""
        body: dict[str, Any] = {
            "inputs": job.prompt,
            "parameters": {
                "max_new_tokens": job.max_new_tokens,
                "temperature": 0,
                "ignore_eos_token": True,
            },
            "stream": True,
        }
        mixture = job.mixture.body()
        if mixture is not None:
            body["mixture"] = mixture
        arrivals: list[float] = []
        details: dict[str, Any] | None = None
        with _understood():
            async with aclosing(_events(self._http, "/generate", body)) as frames:
                async for frame in frames:
                    arrivals.append(self._clock())
                    details = frame.get("details") or details
            _check_length(len(arrivals) if details else 0, job)
            prompt_tokens = details["prompt_tokens"] if details else 0
        return Sample(sent, tuple(arrivals), self._clock(), prompt_tokens, len(arrivals))


class OpenAIClient:
    """POST /v1/completions of any server: an adapter is a model, tokens are counted by `usage`."""

    def __init__(
        self, http: aiohttp.ClientSession, model: str, clock: Clock = time.perf_counter
    ) -> None:
        self._http = http
        self._model = model
        self._clock = clock

    async def send(self, job: Job, sent: float) -> Sample:
        """See `LoadClient`. An event may bring several tokens: its gap is theirs."""
        arrivals: list[float] = []
        usage: dict[str, Any] = {}
        with _understood():
            async with aclosing(_events(self._http, "/v1/completions", self._body(job))) as frames:
                async for frame in frames:
                    usage = frame.get("usage") or usage
                    if any(choice["text"] or _goes_on(choice) for choice in frame["choices"]):
                        arrivals.append(self._clock())
            done = self._clock()
            if not usage.keys() >= {"completion_tokens", "prompt_tokens"}:
                raise BenchmarkError("the server sent no usage: it must know stream_options")
            _check_length(usage["completion_tokens"], job)
        times = tuple(arrivals) or (done,)
        return Sample(sent, times, done, usage["prompt_tokens"], usage["completion_tokens"])

    def _body(self, job: Job) -> dict[str, Any]:
        mixture = job.mixture
        if len(mixture.adapters) > 1 or mixture.router is not None:
            raise BenchmarkError(
                "a mixture cannot be asked of OpenAI's route: use base, one or many, or target "
                "generate"
            )
        return {
            "model": mixture.adapters[0] if mixture.adapters else self._model,
            "prompt": job.prompt,
            "max_tokens": job.max_new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def _goes_on(choice: dict[str, Any]) -> bool:
    return choice.get("finish_reason") is None


def _check_length(tokens: int, job: Job) -> None:
    if tokens != job.max_new_tokens:
        raise BenchmarkError(f"{tokens} tokens came instead of {job.max_new_tokens}")


async def _events(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON of each server-sent event but `[DONE]`."""
    async with http.post(path, json=body) as response:
        if response.status != HTTPStatus.OK:
            raise BenchmarkError(f"the server answered {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                continue
            frame: dict[str, Any] = msgspec.json.decode(line[len(b"data:") :])
            if "error" in frame:
                raise BenchmarkError(f"a stream ended in an error: {frame['error']}")
            yield frame
