"""A body that doesn't arrive ends with 408, on every route: nobody keeps a place by stalling."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from starlette.types import Message

from server.http.access import ENTRIES, MOST_ADMINS, RouteAccess
from server.http.arrival import SLOWEST, timely
from server.http.error_replies import BodyTooSlowError
from tests.server.live import Live, serving, tiny_settings
from tests.support.waiting import HANG_SECONDS

SOON = 0.3  # of a body that never comes: any would do
WITH_BODY = [entry for entry in ENTRIES if entry.body != "none"]
FORM = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\n\r\n{'
PATIENCE = 30.0


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tiny_settings(tmp_path_factory.mktemp("hasty"), body_patience=SOON)) as live:
        yield live


def begun(entry: RouteAccess, framing: str, body: bytes) -> bytes:
    """A request whose body ends too soon."""
    kind = "multipart/form-data; boundary=b" if entry.body == "upload" else "application/json"
    path = entry.path.replace("{name}", "x").replace("{alias}", "y")
    lines = (f"{entry.method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", framing)
    return "\r\n".join([*lines, "", ""]).encode() + body


def stalled(live: Live, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=HANG_SECONDS)
    connection.sendall(request)
    return connection


def require_408(connection: socket.socket, path: str) -> None:
    """Its answer, after which the connection ends."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    told = json.loads(answer.read())
    assert answer.status == 408, told
    assert answer.getheader("connection") == "close"
    if path.startswith("/v1/"):
        assert told["error"]["type"] == "timeout"
    else:
        assert told["error_type"] == "timeout"
    assert "ADAPTERMIX_BODY_PATIENCE" in str(told)
    assert connection.recv(1) == b""


@pytest.mark.parametrize("entry", WITH_BODY, ids=lambda entry: f"{entry.method} {entry.path}")
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("is_begun", [False, True], ids=["nothing", "a part"])
def test_a_body_that_stalls_is_not_waited_for(
    hasty: Live, entry: RouteAccess, *, is_chunked: bool, is_begun: bool
) -> None:
    body = (FORM if entry.body == "upload" else b'{"inputs": ') if is_begun else b""
    framing = "Content-Length: 1000"
    if is_chunked:
        framing = "Transfer-Encoding: chunked"
        body = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    with stalled(hasty, begun(entry, framing, body)) as connection:
        require_408(connection, entry.path)


def test_as_many_as_may_be_keep_nobody_out(hasty: Live) -> None:
    entry = next(entry for entry in WITH_BODY if entry.access == "admin")
    request = begun(entry, "Content-Length: 1000", b"")
    with ExitStack() as stack:
        waiting = [stack.enter_context(stalled(hasty, request)) for _ in range(MOST_ADMINS)]
        for connection in waiting:
            require_408(connection, entry.path)
        assert hasty.client.get("/admin/adapters").status_code == 200


def test_what_has_arrived_is_answered_however_long_that_takes(hasty: Live) -> None:
    """The body is there with its head: whatever else the machine does, it is not waited for."""
    parameters = {"max_new_tokens": 600, "ignore_eos_token": True}
    body = json.dumps({"inputs": "a", "parameters": parameters}).encode()
    entry = next(entry for entry in WITH_BODY if entry.path == "/generate")
    with stalled(hasty, begun(entry, f"Content-Length: {len(body)}", body)) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200


def arrival(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, int]], *, is_whole: bool = False
) -> int:
    """How many pieces are taken of a body whose pieces take so many seconds and have such sizes."""

    async def run() -> int:
        now, taken = [0.0], 0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: now[0])
        coming = iter(pieces)

        async def receive() -> Message:
            seconds, size = next(coming)
            now[0] += seconds
            return {"type": "http.request", "body": b"x" * size, "more_body": not is_whole}

        checked = timely(receive, PATIENCE)
        for _ in pieces:
            await checked()
            taken += 1
        return taken

    return asyncio.run(run())


def test_what_comes_steadily_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrival(monkeypatch, [(1.0, SLOWEST)] * 1000) == 1000
    assert arrival(monkeypatch, [(PATIENCE - 1, SLOWEST * 60)] * 100) == 100
    assert arrival(monkeypatch, [(1.0, 0)] * 29) == 29


@pytest.mark.parametrize(
    "pieces",
    [
        [(1.0, 1)] * 31,
        [(1.0, SLOWEST // 2)] * 61,
        [(PATIENCE + 1, SLOWEST)],
        [(0.0, SLOWEST * 100), (PATIENCE + 1, 1)],
        [(PATIENCE - 1, 1), (PATIENCE - 1, 1)],
    ],
    ids=["drops", "half as fast", "a pause", "a pause after much", "two pauses"],
)
def test_what_comes_too_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, int]]
) -> None:
    with pytest.raises(BodyTooSlowError, match="16384 bytes a second"):
        arrival(monkeypatch, pieces)


def test_behind_the_body_nothing_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrival(monkeypatch, [(1.0, 1), (PATIENCE * 9, 0)], is_whole=True) == 2
