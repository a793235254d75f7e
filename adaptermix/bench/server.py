"""Servers that a measurement starts: made ready, filled with adapters, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import default_kernels
from adaptermix.bench.settings import ModelSettings
from router_engine.assets import DEFAULT_MODEL, AssetName
from router_engine.processors import usable_cores

READY_SECONDS = 1800.0  # a guard against a start that hangs: a slow one may take its time
STOP_SECONDS = 30.0
POLL_SECONDS = 0.2


def adaptermix(*arguments: str) -> list[str]:
    """The command line that runs `adaptermix` in this very environment."""
    return [sys.executable, "-m", "adaptermix.cli.main", *arguments]


def default_model() -> str:
    """The default base model's directory."""
    return pulled(DEFAULT_MODEL)


def pulled(name: AssetName) -> str:
    """A model's directory, brought into the cache where it is not there yet."""
    command = adaptermix("pull", name)
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if completed.returncode != 0:
        raise BenchmarkError(f"adaptermix pull {name} failed")
    return completed.stdout.strip()


@contextlib.contextmanager
def server(options: Sequence[str], log: Path) -> Iterator[str]:
    """Run `adaptermix serve` on a free loopback port and give its URL once it is ready.

    Its output goes to `log`. Raises BenchmarkError with the end of it when the server does not
    become ready.
    """
    with started(options, log) as running:
        yield running.url


@dataclass(frozen=True, slots=True)
class Running:
    """A server process that is ready."""

    url: str
    pid: int
    start_seconds: float  # from the launch to the first answer that says ready
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def started(
    options: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """As `server`, with its process. `environment` is put on top of this process's own."""
    port = free_port()
    command = adaptermix("serve", "--port", str(port), *options)
    if environment:
        command = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
    with http_process(command, f"http://127.0.0.1:{port}", "/health/ready", log) as running:
        yield running


@contextlib.contextmanager
def http_process(
    command: Sequence[str], url: str, ready: str, log: Path, *, own_group: bool = False
) -> Iterator[Running]:
    """Run a server until the block ends; `ready` is the path that answers 200 from then on.

    `own_group` lets it be stopped and continued as a whole, with all its children.
    """
    launched = time.perf_counter()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=own_group
        ) as process,
    ):
        try:
            _wait_until_ready(process, url, ready, log)
            yield Running(url, process.pid, time.perf_counter() - launched, process)
        finally:
            _stop(process, own_group=own_group)


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A server of ours that runs for one measurement."""

    running: Running
    info: dict[str, Any]  # as `GET /info` answers
    kernels: str
    threads: int  # of its engine
    log: Path

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def serving(self) -> dict[str, Any]:
        """Format, kernels and threads, as a result tells them."""
        dtype = self.info["dtype"]
        return {"dtype": dtype, "kernels": self.kernels, "threads": self.threads}


@contextlib.contextmanager
def own_server(
    base: str,
    model: ModelSettings,
    folder: Path,
    options: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
) -> Iterator[OwnServer]:
    """Serve the checkpoint `base` until the block ends, with store and log in `folder`.

    `options` of `adaptermix serve` go before those of `model`. Raises BenchmarkError as `server`.
    """
    kernels, log = model.kernels or default_kernels(), folder / "server.log"
    own = server_options(base, model.dtype, kernels, model.threads) | {"store": folder / "store"}
    with started(words({**own, **options}), log, environment) as running:
        threads = model.threads or usable_cores()
        yield OwnServer(running, info(running.url), kernels, threads, log)


def server_options(base: str, dtype: str, kernels: str, threads: int | None) -> dict[str, object]:
    """Options of `adaptermix serve` that every measurement gives, by name."""
    options = {"model": base, "dtype": dtype, "kernels": kernels, "log-level": "warning"}
    return {**options, "engine-threads": threads}


def words(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line; those that are None are left out."""
    chosen = {name: value for name, value in options.items() if value is not None}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def info(url: str) -> dict[str, Any]:
    """The answer of an AdapterMix server to `GET /info`. Raises BenchmarkError for another's."""
    try:
        answer = httpx.get(f"{url}/info", timeout=600, trust_env=False)
        if answer.status_code != httpx.codes.OK:
            raise BenchmarkError(f"{url}/info answered {answer.status_code}: {answer.text[:200]}")
        served = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # a host or JSON that is none
        raise BenchmarkError(f"{url}: {error}") from error
    if not isinstance(served, dict) or not isinstance(served.get("model_id"), str):
        raise BenchmarkError(f"{url} does not answer as AdapterMix does: is it another server's?")
    return served


def publish(url: str, folders: Sequence[Path], texts: Sequence[str] = ()) -> None:
    """Upload adapter folders under their own names, each with sample texts, if there are any."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        for folder in folders:
            files = [("files", (path.name, path.read_bytes())) for path in folder.iterdir()]
            if texts:
                files.append(("texts", ("texts.jsonl", lines.encode())))
            answer = client.post("/admin/adapters", data={"name": folder.name}, files=files)
            if answer.status_code != httpx.codes.CREATED:
                raise BenchmarkError(f"{folder.name} was refused: {answer.text}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, ready: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(ready).status_code == httpx.codes.OK:
                    return
            time.sleep(POLL_SECONDS)
    lines = log.read_text(errors="replace").splitlines()
    raise BenchmarkError("the server did not become ready:\n" + "\n".join(lines[-20:]))


def _stop(process: subprocess.Popen[bytes], *, own_group: bool) -> None:
    """A group of its own may be stopped: it goes on first, and ends with all its children."""
    if own_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    if own_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
