"""A request past its timeout takes no further step and ends with its own error, everywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from router_engine.calls import GetStats
from server.deadline import Deadline
from server.generation.streams import limited
from server.schemas.generate import GenerateAnyBody, GenerateBody
from server.schemas.openai import ChatBody, CompletionBody
from server.schemas.score import ScoreBody
from server.settings import SettingsError
from tests.server.live import Live, events, serving, tiny_settings
from tests.support.waiting import HANG_SECONDS, wait_for

MOST = HANG_SECONDS + 100  # of a server of these tests
SOON = 0.05  # of an engine that stands still: any would do
LONG = {"max_new_tokens": 900, "ignore_eos_token": True}
COMPLETION: dict[str, Any] = {"model": "tiny-random", "prompt": "a", "max_tokens": 900}
CHAT = {"model": "tiny-random", "messages": [{"role": "user", "content": "a"}], "n": 2}
SIMILAR = {"name": "similarity", "candidates": ["math", "code"]}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "a", "parameters": LONG},
    "/generate_stream": {"inputs": "a", "parameters": LONG},
    "/": {"inputs": "a", "parameters": LONG},
    "/score": {"inputs": "a", "completions": ["b", "c d e"]},
    "/v1/completions": COMPLETION,
    "/v1/chat/completions": CHAT,
}
ASKED = [
    *BODIES.items(),
    ("/generate", BODIES["/generate"] | {"stream": True}),
    ("/", BODIES["/"] | {"stream": True}),
    ("/v1/completions", COMPLETION | {"prompt": ["a"] * 8, "n": 4}),
    ("/v1/completions", COMPLETION | {"stream": True, "n": 3}),
    ("/v1/chat/completions", CHAT | {"stream": True}),
]


def is_idle(live: Live) -> bool:
    """Whether nothing is left of any request."""
    stats = live.run(live.container.services.engine.call(GetStats()))
    admission = live.container.admission
    return not (stats.running or stats.waiting or admission.waiting or admission.live)


def told(answer: Any, path: str) -> dict[str, Any]:
    """The error of an answer."""
    assert answer.status_code == 408, answer.text
    assert answer.headers["x-should-retry"] == "false"
    body: dict[str, Any] = answer.json()
    if not path.startswith("/v1/"):
        assert body["error_type"] == "timeout"
        return body
    assert (body["error"]["type"], body["error"]["code"]) == ("timeout", "timeout")
    return {"error": body["error"]["message"]}


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_what_waits_for_the_engine_ends(bare: Live, path: str, body: dict[str, Any]) -> None:
    with bare.paused():
        answer = bare.client.post(path, json=body | {"timeout": SOON})
        assert "0.05 s" in told(answer, path)["error"]
        admission = bare.container.admission
        wait_for(lambda: not (admission.waiting or admission.live))
    wait_for(lambda: is_idle(bare))


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions", "/v1/chat/completions"])
def test_a_stream_ends_with_one_event_of_its_own(bare: Live, path: str) -> None:
    body = BODIES[path] | ({} if path == "/generate_stream" else {"stream": True, "n": 2})
    if path == "/v1/chat/completions":
        body |= {"max_tokens": 900, "ignore_eos": True}
    # Longer from try to try, until the first token comes in time.
    for exponent in range(12):
        frames = _held_stream(bare, path, body | {"timeout": 0.25 * 2**exponent})
        if frames:
            break
    last = frames[-1]
    kind = last["error_type"] if path == "/generate_stream" else last["error"]["type"]
    assert kind == "timeout"
    assert sum("error" in frame for frame in frames) == 1
    wait_for(lambda: is_idle(bare))


def _held_stream(bare: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream whose engine stands still after the first of them."""
    with bare.client.stream("POST", path, json=body) as response:
        if response.status_code == 408:
            return []
        lines = response.iter_lines()
        first = next(line for line in lines if line.startswith("data:"))
        with bare.paused():
            return events("\n".join([first, *lines]))


def test_a_timeout_that_is_long_enough_changes_nothing(bare: Live) -> None:
    plain = bare.answer("hello", parameters={"max_new_tokens": 8})
    assert bare.answer("hello", parameters={"max_new_tokens": 8}, timeout=HANG_SECONDS) == plain
    frames = bare.frames("hello", parameters={"max_new_tokens": 8}, timeout=HANG_SECONDS)
    assert frames[-1]["generated_text"] == plain["generated_text"]


def test_what_waits_for_a_thread_ends(bare: Live) -> None:
    gate = threading.Event()

    async def occupy() -> list[asyncio.Task[bool]]:
        run = bare.container.threads.run
        return [asyncio.create_task(run(gate.wait)) for _ in range(16)]

    held = bare.run(occupy())
    try:
        for path in ("/generate", "/score"):
            body = {"inputs": "a" * 800, "mixture": {"adapters": [{"name": "math"}]}}
            body |= {"completions": ["b"]} if path == "/score" else {}
            told(bare.client.post(path, json=body | {"timeout": SOON}), path)
    finally:
        gate.set()
        bare.run(_all(held))


@pytest.mark.parametrize("seconds", [None, HANG_SECONDS])
def test_a_stream_that_nobody_reads_runs_to_its_end(seconds: float | None) -> None:
    """What it holds, such as its adapters, is free again however slowly the client takes it."""

    async def read_one() -> None:
        ended = asyncio.Event()

        async def source() -> AsyncGenerator[int, None]:
            try:
                for number in range(100):
                    yield number
            finally:
                ended.set()

        stream = limited(source(), Deadline(seconds))
        assert await anext(stream) == 0
        await ended.wait()
        assert [number async for number in stream] == list(range(1, 100))

    asyncio.run(read_one())


async def _all(tasks: list[asyncio.Task[bool]]) -> None:
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("level", ["request", "token"])
def test_what_waits_for_a_router_ends(live: Live, level: str) -> None:
    """The encoder stands still."""
    mixture = {"router": SIMILAR | {"level": level}}
    body: dict[str, Any] = {"inputs": f"a prompt of level {level}", "mixture": mixture}
    live.answer("the encoder is there", mixture=mixture, parameters={"max_new_tokens": 1})
    encoders = children("encoder.worker")
    assert encoders
    for pid in encoders:
        os.kill(pid, signal.SIGSTOP)
    try:
        told(live.client.post("/generate", json=body | {"timeout": SOON}), "/generate")
    finally:
        for pid in encoders:
            os.kill(pid, signal.SIGCONT)
    live.answer(**body, parameters={"max_new_tokens": 1})


def children(name: str) -> list[int]:
    """Processes of this one whose command line has the name in it."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            with suppress(FileNotFoundError):
                if name in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
    return found


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("value", [0, -1, 3600.5, 1e300, 2**62, "5", True, [], {}])
def test_what_is_no_timeout_is_refused_by_name(bare: Live, path: str, value: Any) -> None:
    answer = bare.client.post(path, json=BODIES[path] | {"timeout": value})
    assert answer.status_code == 422
    assert "timeout" in answer.text
    if isinstance(value, float | int) and not isinstance(value, bool) and value > 1:
        assert "ADAPTERMIX_MAX_TIMEOUT" in answer.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_is_no_timeout(bare: Live, value: str) -> None:
    text = f'{{"inputs": "a", "timeout": {value}}}'
    json = {"content-type": "application/json"}
    answer = bare.client.post("/generate", content=text, headers=json)
    assert answer.status_code == 422


def test_every_body_that_asks_for_tokens_has_a_timeout() -> None:
    for body in (GenerateBody, GenerateAnyBody, ScoreBody, CompletionBody, ChatBody):
        assert "timeout" in body.model_fields


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with a timeout of its own."""
    root = tmp_path_factory.mktemp("hasty")
    with serving(tiny_settings(root, default_timeout=SOON, max_timeout=MOST)) as live:
        yield live


def test_the_server_s_own_timeout_holds_where_none_is_asked_for(hasty: Live) -> None:
    info = hasty.client.get("/info").json()
    assert (info["default_timeout"], info["max_timeout"]) == (SOON, MOST)
    with hasty.paused():
        for path, body in BODIES.items():
            told(hasty.client.post(path, json=body), path)
    assert hasty.answer("a", parameters={"max_new_tokens": 1}, timeout=HANG_SECONDS)
    refused = hasty.generate("a", timeout=MOST + 1)
    assert refused.status_code == 422
    assert f"at most {MOST:g} seconds" in refused.text


def test_a_default_above_the_maximum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="default_timeout"):
        tiny_settings(tmp_path, default_timeout=5, max_timeout=4)
