"""A request that is cut off as the server ends is told so, whatever it waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.errors import RequestCancelledError
from server.http.draining import Draining, LastWords
from server.http.streaming import LastFrame, event_response

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
WHOLE = [(b"content-type", b"application/json"), (b"content-length", b"9")]
Handler = Callable[[Receive, Send], Awaitable[None]]


async def _wait_for_nothing() -> None:
    await asyncio.get_running_loop().create_future()


async def _for_its_body(receive: Receive, _: Send) -> None:
    await receive()


async def _for_a_thread(_: Receive, __: Send) -> None:
    async with asyncio.timeout(None), asyncio.TaskGroup() as group:
        group.create_task(_wait_for_nothing())


async def _in_a_stream(_: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await _wait_for_nothing()


async def _in_a_body(_: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": WHOLE})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    await _wait_for_nothing()


async def _after_the_end(_: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await send({"type": "http.response.body", "body": b"data: 1\n\n"})
    await _wait_for_nothing()


async def _before_it_is_written(_: Receive, send: Send) -> None:
    await send({"type": "slow"})
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})


def cut_off(handler: Handler, path: str = "/generate") -> list[Message]:
    """What is sent of a request that never ends by itself."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if message["type"] == "slow":  # of a client that does not read
            await _wait_for_nothing()
        sent.append(message)

    async def receive() -> Message:
        await _wait_for_nothing()
        return {"type": "http.disconnect"}

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await handler(receive, send)

    async def run() -> None:
        draining = Draining()
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        request = asyncio.ensure_future(LastWords(app, draining)(scope, receive, send))
        await asyncio.sleep(0)
        draining.begin()
        draining.end()
        await draining.idle()
        await request

    asyncio.run(run())
    return sent


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("handler", [_for_its_body, _for_a_thread, _before_it_is_written])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/admin/adapters"])
def test_without_an_answer_it_is_a_503(handler: Handler, path: str) -> None:
    sent = cut_off(handler, path)
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"2") in sent[0]["headers"]
    told: dict[str, Any] = json.loads(body_of(sent))
    if path.startswith("/v1"):
        assert told["error"]["type"] == "cancelled"
    else:
        assert told["error_type"] == "cancelled"


@pytest.mark.parametrize(("path", "last"), [("/generate", "}"), ("/v1/completions", "[DONE]")])
def test_a_stream_has_one_last_event(path: str, last: str) -> None:
    sent = cut_off(_in_a_stream, path)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    text = body_of(sent).decode()
    assert text.startswith("data: 1\n\n")
    assert text.count('"cancelled"') >= 1
    assert text.endswith(f"{last}\n\n")
    assert not sent[-1].get("more_body", False)


class _Stuck:
    """A connection that takes so many events, and no more: its client does not read."""

    def __init__(self, room: int) -> None:
        self.sent: list[bytes] = []
        self.is_stuck = asyncio.Event()
        self._room = room

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if len(self.sent) == self._room and not self.is_stuck.is_set():
                self.is_stuck.set()  # what comes later is of the end, and is taken
                await _wait_for_nothing()
            self.sent.append(message.get("body", b""))
            if not message.get("more_body", False):
                self.sent.append(b"<end>")


def cut_off_stream(
    path: str, room: int, *frames: str | Exception, hangs: bool = False
) -> list[str]:
    """The events, and the end, that a client gets that takes so many before the server ends.

    With `hangs` the stream itself goes no further after its frames.
    """

    async def run() -> list[str]:
        draining, connection = Draining(), _Stuck(room)

        async def told() -> AsyncIterator[str]:
            for frame in frames:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
            if hangs:
                connection.is_stuck.set()
                await _wait_for_nothing()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = event_response(told(), openai=path.startswith("/v1"))
            await response(scope, receive, send)

        async def receive() -> Message:
            await _wait_for_nothing()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        words = LastWords(app, draining)(scope, receive, connection.send)
        request = asyncio.ensure_future(words)
        await connection.is_stuck.wait()
        draining.begin()
        draining.end()
        await request
        return b"".join(connection.sent).decode().replace("data: ", "").split("\n\n")

    return asyncio.run(run())


LAST = LastFrame('"last"')
NATIVE, OPENAI = "/generate_stream", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "room", "frames", "hangs"),
    [
        (NATIVE, 2, ["1", LAST], False),  # the empty end waits
        (NATIVE, 2, ["1", "2"], False),
        (NATIVE, 1, ["1", LAST], False),  # the last frame waits: it is not sent
        (NATIVE, 2, ["1", LAST], True),
        (OPENAI, 3, ["1", LAST], False),
        (OPENAI, 2, ["1", LAST], False),  # [DONE] waits
        (OPENAI, 2, ["1", "2"], False),
        (OPENAI, 2, ["1", LAST], True),
        (OPENAI, 1, ["1", LAST], False),
        (NATIVE, 2, ["1", LAST, RequestCancelledError("late")], False),
        (OPENAI, 2, ["1", RequestCancelledError("early")], False),
        (NATIVE, 2, ["1", RequestCancelledError("early")], False),
    ],
)
def test_a_stream_has_one_end(
    path: str, room: int, frames: list[str | Exception], *, hangs: bool
) -> None:
    *events, end = cut_off_stream(path, room, *frames, hangs=hangs)
    assert end == "<end>"
    if path == OPENAI:
        assert events.pop() == "[DONE]"
    taken = [one for one in frames[:room] if isinstance(one, str)]
    assert events[: len(taken)] == taken
    failed = events[len(taken) :]
    is_whole = len(taken) == 2
    assert len(failed) == (0 if is_whole else 1)
    assert all('"cancelled"' in one for one in failed)
    assert events.count("[DONE]") == 0


def test_what_is_whole_and_what_cannot_be_ended_is_left() -> None:
    assert body_of(cut_off(_after_the_end)) == b"data: 1\n\n"
    assert body_of(cut_off(_in_a_body)) == b"{"


def test_who_goes_away_before_is_cancelled_as_ever() -> None:
    async def run() -> None:
        async def app(*_: Any) -> None:
            await _wait_for_nothing()

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            raise AssertionError("nobody is told")

        scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
        request = asyncio.ensure_future(LastWords(app, Draining())(scope, nothing, send))
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(run())
