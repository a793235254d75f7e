"""Peers as systems under load. Who has no turn is stopped, and takes nothing of the cores."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from adaptermix.bench.clients import LoadClient, http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round, Sample
from adaptermix.bench.machine import ROOT
from adaptermix.bench.peers.environment import tail
from adaptermix.bench.rounds import Driven, System
from adaptermix.bench.serve import merging
from adaptermix.bench.server import Running
from adaptermix.bench.workload import Job

_STOP_SECONDS = 30.0
LIMIT_SECONDS = 600.0  # of a round: who is that slow hangs

MakeClient = Callable[[aiohttp.ClientSession], LoadClient]
Tokenize = Callable[[str], list[int]]


@contextlib.contextmanager
def awake(group: int | None) -> Iterator[None]:
    """Let a process group run during the block only; None is one that is never stopped."""
    if group is None:
        yield
        return
    os.killpg(group, signal.SIGCONT)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)


class HttpSystem:
    """A server. Each round has connections of its own: those of a stopped server grow stale."""

    def __init__(self, running: Running, make: MakeClient, *, stops: bool) -> None:
        self._url = running.url
        self._make = make
        self._group = running.pid if stops else None
        self._hangs = False
        if self._group is not None:
            os.killpg(self._group, signal.SIGSTOP)

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """See `System`. Raises BenchmarkError for whatever goes wrong with the server."""
        if self._hangs:
            raise BenchmarkError("it did not answer before")
        try:
            with awake(self._group):
                async with http_client(self._url) as http, asyncio.timeout(LIMIT_SECONDS):
                    system = Driven(self._make(http).send, merging(http))
                    return await system.round(case, load, jobs, on_done)
        except TimeoutError:
            self._hangs = True
            raise BenchmarkError(f"no answer in {LIMIT_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, ProcessLookupError) as error:
            raise BenchmarkError(f"{type(error).__name__}: {error}") from error


class Worker:
    """A process that answers each line of JSON with another: `workers/wire.py` is its other end."""

    def __init__(self, command: Sequence[str], log: Path, tokenize: Tokenize) -> None:
        self._log = log
        self._tokenize = tokenize
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        try:
            self.about: dict[str, Any] = self._read()
        except BaseException:
            self.close()
            raise
        os.killpg(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """See `System`. The case is said by the jobs themselves."""
        message: dict[str, Any] = {
            "op": "round",
            "clients": load.clients,
            "jobs": [
                {
                    "tokens": self._tokenize(job.prompt),
                    "adapter": job.mixture.adapters[0] if job.mixture.adapters else None,
                    "new_tokens": job.max_new_tokens,
                }
                for job in jobs
            ],
        }
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                answer = await asyncio.to_thread(self.call, message)
        except TimeoutError:
            self.close()
            raise BenchmarkError(f"no answer in {LIMIT_SECONDS:.0f} s") from None
        for _ in jobs:
            on_done()
        samples = [
            Sample(
                one["sent"],
                tuple(one["arrivals"]),
                one["arrivals"][-1],
                len(sent["tokens"]),
                len(one["arrivals"]),
            )
            for one, sent in zip(answer["samples"], message["jobs"], strict=True)
        ]
        for sample, job in zip(samples, jobs, strict=True):
            if sample.output_tokens != job.max_new_tokens:
                count = sample.output_tokens
                raise BenchmarkError(f"{count} tokens came instead of {job.max_new_tokens}")
        return Round(tuple(samples), answer["seconds"])

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """One question, one answer. Raises BenchmarkError with what went wrong in the process."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            raise BenchmarkError(f"a worker is dead:\n{tail(self._log)}")
        with awake(self.pid):
            try:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise BenchmarkError(f"a worker died:\n{tail(self._log)}") from None
            return self._read()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"a worker died:\n{tail(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{answer['error']}\n{tail(self._log)}")
        return answer


@dataclass(frozen=True, slots=True)
class Context:
    """The work that is the same for all."""

    model: str  # checkpoint directory
    adapters: tuple[Path, ...]  # PEFT folders
    rank: int
    clients: int  # the most at once
    tokens: int  # the most of a prompt and its answer
    threads: int
    cache: Path  # of environments and converted models
    scratch: Path  # for this run
    tokenize: Tokenize
    isa: str | None  # that all are held down to; None: the machine as found
    stack: ExitStack = field(repr=False)  # ends what was started


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer that is ready: systems by name (some have two), and what was installed."""

    systems: Mapping[str, System]
    versions: Mapping[str, str]


class OpenPeer(Protocol):
    """Install if need be, start, wait until ready. Raises BenchmarkError with the reason."""

    def __call__(self, context: Context) -> Opened: ...
