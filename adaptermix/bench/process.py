"""A server of its own for a benchmark: started, made ready, filled with adapters, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adaptermix.bench.errors import BenchmarkError
from router_engine.assets import DEFAULT_MODEL, AssetName

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
def started(options: Sequence[str], log: Path) -> Iterator[Running]:
    """As `server`, with what is known of the process."""
    port = free_port()
    command = adaptermix("serve", "--port", str(port), *options)
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


def info(url: str) -> dict[str, Any]:
    """What an AdapterMix server says that it serves. Raises BenchmarkError where none answers."""
    try:
        answer = httpx.get(f"{url}/info", timeout=600, trust_env=False)
        if answer.status_code != httpx.codes.OK:
            raise BenchmarkError(f"{url}/info answered {answer.status_code}: {answer.text[:200]}")
        known = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # a host or JSON that is none
        raise BenchmarkError(f"{url}: {error}") from error
    if not isinstance(known, dict) or not isinstance(known.get("model_id"), str):
        raise BenchmarkError(f"{url} does not answer as AdapterMix does: is it another server's?")
    return known


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
