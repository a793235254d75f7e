"""Heads of requests are bounded, with or without a key: in bytes, in lines and in time."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http.access import ENTRIES, MOST_QUERY, MOST_TYPE, RouteAccess
from server.http.container import Container
from server.http.heads import MOST_HEAD, MOST_LINES, BoundedHeads
from server.serving import config_of
from tests.server.live import Live, inline_engine, serving, tiny_settings
from tests.support.waiting import HANG_SECONDS

ADMIN = "an-admin-key-from-the-environment"
SOON = 0.3  # of a head that never ends: any would do
BODY = b'{"inputs": "a", "parameters": {"max_new_tokens": 1}}'
HOST = b"Host: localhost\r\n"
CHUNKED = (
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tiny_settings(tmp_path_factory.mktemp("heads")), head_patience=SOON) as live:
        yield live


def connected(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=HANG_SECONDS)


def told(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def last(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The same, of an answer after which the connection ends."""
    found = told(connection)
    assert connection.recv(1) == b""
    return found


def get(path: bytes, headers: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n"


TOO_LARGE = {
    "a header": get(b"/health", b"X: " + b"a" * MOST_HEAD + b"\r\n"),
    "a header without an end": get(b"/health")[:-2] + b"X: " + b"a" * (1 << 20),
    "a name without an end": get(b"/health")[:-2] + b"x" * (1 << 20),
    "a path": get(b"/" + b"a" * MOST_HEAD),
    "a path without an end": b"GET /" + b"a" * (1 << 20),
    "a query": get(b"/health?" + b"a&" * MOST_HEAD),
    "a cookie": get(b"/health", b"Cookie: " + b"a=b;" * 250_000 + b"\r\n"),
    "headers": get(b"/health", b"a:\r\n" * MOST_LINES),
    "many headers": get(b"/health", b"a:\r\n" * 100_000),
    "headers without an end": get(b"/health")[:-2] + b"a:\r\n" * 100_000,
    "nothing but lines": b"\r\n" * (1 << 19),
    "trailers": CHUNKED + b"X: y\r\n" * (MOST_LINES + 1) + b"\r\n",
    "many trailers": CHUNKED + b"X: y\r\n" * 500_000 + b"\r\n",
    "a trailer without an end": CHUNKED + b"X: " + b"y" * (1 << 20),
    "a chunk's extension without an end": CHUNKED[:-3] + b"0;" + b"y" * (1 << 20),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_head_that_is_too_large_is_refused(bare: Live, name: str) -> None:
    with connected(bare) as connection:
        connection.sendall(TOO_LARGE[name])
        status, body = last(connection)
    assert status == 431
    assert body["error_type"] == "head_too_large"
    assert str(MOST_HEAD) in body["error"] or str(MOST_LINES) in body["error"]


def test_under_v1_the_error_has_openai_s_shape(bare: Live) -> None:
    with connected(bare) as connection:
        connection.sendall(get(b"/v1/models", b"a:\r\n" * 1000))
        status, body = last(connection)
    assert (status, body["error"]["code"]) == (431, "head_too_large")
    assert body["error"]["type"] == "invalid_request_error"


def test_what_is_no_http_is_refused_in_the_same_shape(bare: Live) -> None:
    with connected(bare) as connection:
        connection.sendall(b"nothing at all\r\n\r\n")
        status, body = last(connection)
    assert (status, body["error_type"]) == (400, "bad_request")


def requested(entry: RouteAccess, query: str = "", kind: str = "", size: int = 0) -> bytes:
    path = re.sub(r"\{\w+(:path)?\}", "x", entry.path)
    lines = [f"{entry.method} {path}{query} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()


@pytest.mark.parametrize("query", ["?" + "a&" * 5000, "?" + "%41&" * 5000, "?x=" + "y" * 5000])
def test_a_long_query_is_refused_unread(bare: Live, query: str) -> None:
    for entry in ENTRIES:
        with connected(bare) as connection:
            connection.sendall(requested(entry, query))
            status, body = told(connection)
        assert (status, str(MOST_QUERY) in str(body)) == (422, True)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_long_type_is_refused_unread(bare: Live, kind: str) -> None:
    for entry in ENTRIES:
        is_form = kind.startswith("multipart")
        sizes = (0, 100) if entry.body != "none" and is_form == (entry.body == "upload") else (0,)
        for size in sizes:
            with connected(bare) as connection:
                connection.sendall(requested(entry, kind=f'{kind}; a="' + ";" * 5000, size=size))
                status, body = told(connection)
            assert (status, str(MOST_TYPE) in str(body)) == (415, True)


def test_as_much_as_may_be_is_taken_again_and_again(bare: Live) -> None:
    longest = b"Cookie: " + b"a=b;" * ((MOST_HEAD - 200) // 4) + b"\r\n"
    lines = b"".join(b"x-%d: y\r\n" % i for i in range(MOST_LINES - 1))
    with connected(bare) as connection:
        for headers in (longest, lines, b"", lines, longest):
            connection.sendall(get(b"/health", headers))
            assert told(connection)[0] == 200


def test_requests_may_follow_each_other_at_once(bare: Live) -> None:
    with connected(bare) as connection:
        request = get(b"/health/live", b"X: " + b"a" * 1000 + b"\r\n")
        connection.sendall(request * 99 + get(b"/health/live", b"Connection: close\r\n"))
        answers = b""
        while piece := connection.recv(1 << 16):
            answers += piece
    assert answers.count(b"HTTP/1.1 200 OK") == 100


def test_a_long_body_is_no_head(bare: Live) -> None:
    text = json.dumps({"inputs": "a", "parameters": {"stop": [" " * (1 << 20)]}}).encode()
    pieces = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    with connected(bare) as connection:
        connection.sendall(CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + chunks + b"0\r\n\r\n")
        status, body = told(connection)
    assert (status, body["error_type"]) == (422, "validation")


def test_trailers_change_nothing(keyed_only: Live) -> None:
    """A key that comes behind the body is none."""
    with connected(keyed_only) as connection:
        connection.sendall(CHUNKED + f"Authorization: Bearer {ADMIN}\r\n\r\n".encode())
        assert told(connection)[0] == 401


@pytest.fixture(scope="module")
def keyed_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    settings = tiny_settings(tmp_path_factory.mktemp("keyed"), admin_key=ADMIN)
    with serving(settings) as live:
        yield live


@pytest.mark.parametrize("begun", [b"G", b"GET /health HTTP/1.1\r\n", get(b"/health")[:-2]])
def test_a_head_that_does_not_end_is_not_waited_for(hasty: Live, begun: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(begun)
        status, body = last(connection)
    assert (status, body["error_type"]) == (408, "timeout")
    assert "ADAPTERMIX_BODY_PATIENCE" in body["error"]


def test_who_says_nothing_is_not_waited_for(hasty: Live) -> None:
    with connected(hasty) as connection:
        assert connection.recv(1) == b""


def test_a_second_head_has_its_own_time(hasty: Live) -> None:
    with connected(hasty) as connection:
        connection.sendall(get(b"/health"))
        assert told(connection)[0] == 200
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert last(connection)[0] == 408


def test_what_is_under_way_is_not_cut_short(hasty: Live) -> None:
    """The time is the head's alone: a stream may last."""
    frames = hasty.frames("a", parameters={"max_new_tokens": 100, "ignore_eos_token": True})
    assert frames[-1]["generated_text"] is not None


def test_a_server_takes_the_time_from_its_settings(tmp_path: Path) -> None:
    container = Container(tiny_settings(tmp_path, body_patience=7.5), inline_engine)
    heads = config_of(container).http
    assert isinstance(heads, type)
    assert issubclass(heads, BoundedHeads)
    assert heads.patience == 7.5
    asyncio.run(container.close())


def test_an_idle_connection_is_kept_for_longer_than_clients_keep_it(tmp_path: Path) -> None:
    """Else a request is on its way as the server closes: a reset, which no client may repeat."""
    container = Container(tiny_settings(tmp_path), inline_engine)
    clients = (httpx.Limits().keepalive_expiry or 0, 60)  # seconds; 60: usual among proxies
    assert config_of(container).timeout_keep_alive > max(clients)
    asyncio.run(container.close())


def test_an_idle_connection_ends(tmp_path: Path) -> None:
    with serving(tiny_settings(tmp_path, keep_alive=0.5)) as live, connected(live) as connection:
        for _ in range(2):
            connection.sendall(get(b"/health/live"))
            assert told(connection)[0] == 200
        assert connection.recv(1) == b""
