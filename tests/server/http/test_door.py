"""The door: who may send what is decided before the body, for every route that there is."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Scope

from server.app import create_app
from server.http.access import ENTRIES, SMALL_BODY, AccessMiddleware, RouteAccess
from server.http.auth import Auth
from server.http.container import Container
from tests.server.live import Live, serving, tiny_settings

ADMIN = "an-admin-key-from-the-environment"
HUGE = 100 << 20
CLOSED = [entry for entry in ENTRIES if entry.access in ("use", "admin")]
WITH_BODY = [entry for entry in CLOSED if entry.body != "none"]
TYPES = {"json": "application/json", "small": "application/json", "upload": "multipart/form-data"}


def named(entry: RouteAccess) -> str:
    return f"{entry.method} {entry.path}"


def path_of(entry: RouteAccess) -> str:
    """A path that the entry stands for."""
    return re.sub(r"\{\w+(:path)?\}", "x", entry.path)


@dataclass(frozen=True)
class Keyed:
    live: Live
    use: str
    admin: str

    def attempt(
        self, entry: RouteAccess, key: str | None, body: int = 0, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer that comes though the body never does."""
        lines = [f"{entry.method} {path_of(entry)} HTTP/1.1", f"Host: 127.0.0.1:{self.live.port}"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        if body:
            lines.append(f"Content-Length: {body}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return exchange(self.live.port, "\r\n".join([*lines, "", ""]).encode("latin-1"))


def exchange(port: int, request: bytes) -> tuple[int, dict[str, Any]]:
    """What a raw request is answered with."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    is_json = answer.getheader("content-type") == "application/json"
    return answer.status, json.loads(body) if is_json and body else {}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    settings = tiny_settings(tmp_path_factory.mktemp("door"), admin_key=ADMIN)
    with serving(settings) as live:
        _, use = live.container.store.create_key("someone", "use")
        _, admin = live.container.store.create_key("boss", "admin")
        yield Keyed(live, use, admin)


def test_every_operation_is_in_the_table_and_nothing_else(keyed: Keyed) -> None:
    paths = keyed.live.client.get("/openapi.json").json()["paths"]
    told = {
        (method.upper(), re.sub(r":path\}", "}", path))
        for path, methods in paths.items()
        for method in methods
    }
    pages = {("GET", "/docs"), ("GET", "/docs/{file}"), ("GET", "/openapi.json")}
    known = {(entry.method, re.sub(r":path\}", "}", entry.path)) for entry in ENTRIES}
    assert known - pages == told


@pytest.mark.parametrize("entry", CLOSED, ids=named)
@pytest.mark.parametrize("key", [None, "wrong", "amx_0_0", "caf\xe9", "x" * 10_000])
def test_without_a_key_nothing_is_read(keyed: Keyed, entry: RouteAccess, key: str | None) -> None:
    for size in (0, HUGE):
        status, body = keyed.attempt(entry, key, size)
        assert status == 401
        assert len(json.dumps(body)) < 1024


@pytest.mark.parametrize("entry", CLOSED, ids=named)
def test_a_use_key_opens_what_is_for_use(keyed: Keyed, entry: RouteAccess) -> None:
    status, _ = keyed.attempt(entry, keyed.use, HUGE if entry.access == "admin" else 0)
    assert (status == 403) == (entry.access == "admin")
    assert status != 401


@pytest.mark.parametrize("entry", CLOSED, ids=named)
def test_a_body_that_is_too_large_is_refused_by_its_length(
    keyed: Keyed, entry: RouteAccess
) -> None:
    kind = TYPES.get(entry.body, "application/json")
    status, body = keyed.attempt(entry, keyed.admin, 2 << 30, content_type=kind)
    assert status == 413
    told = str(body)
    if entry.body == "none":
        assert "takes no body" in told
    elif entry.body == "small":
        assert str(SMALL_BODY) in told
    else:
        assert "ADAPTERMIX_MAX" in told


@pytest.mark.parametrize("entry", WITH_BODY, ids=named)
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "x" * 999]
)
def test_a_body_of_another_kind_is_refused(
    keyed: Keyed, entry: RouteAccess, kind: str | None
) -> None:
    headers = {} if kind is None else {"content_type": kind}
    status, body = keyed.attempt(entry, keyed.admin, 1000, **headers)
    assert status == 415
    assert TYPES[entry.body] in str(body)
    assert len(str(body)) < 1024


@pytest.mark.parametrize(
    "path", ["/nowhere", "/generate/", "/admin", "/v1", "/docs2", "/%2e%2e", "//"]
)
def test_what_is_not_in_the_table_does_not_exist(keyed: Keyed, path: str) -> None:
    for key in (None, keyed.admin):
        entry = RouteAccess("POST", path, "admin")
        assert keyed.attempt(entry, key, HUGE)[0] == 404


def test_another_method_is_named_with_those_that_work(keyed: Keyed) -> None:
    answer = keyed.live.client.request("PATCH", "/generate")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert "POST" in answer.json()["error"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /info HTTP/1.1\r\nHost: [bad\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: [bad\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://[::1\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\n\r\n",
        b"GET /admin/adapters/%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /admin/adapters/%ff%fe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /admin/adapters?tag=%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /admin/adapters/a0@999999999999999999999 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /admin/adapters/a0@" + b"9" * 5000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"DELETE /admin/adapters/a%00b/aliases/%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
def test_odd_requests_are_refused_and_no_failure(keyed: Keyed, bare: Live, head: bytes) -> None:
    for port in (keyed.live.port, bare.port):
        status, body = exchange(port, head)
        assert 400 <= status < 500
        assert len(str(body)) < 1200


def test_revoking_the_last_key_opens_nothing(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    first = Container(settings)
    key, secret = first.store.create_key("boss", "admin")
    first.store.close()
    with serving(settings) as live:
        mine = {"Authorization": f"Bearer {secret}"}
        assert live.client.get("/info", headers=mine).status_code == 200
        live.container.store.revoke_key(key.id)
        for headers in (mine, {}, {"Host": "localhost"}):
            assert live.client.get("/info", headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_who_listens_to_others_asks_for_keys_whatever_becomes_of_them(
    tmp_path: Path, host: str
) -> None:
    container = Container(tiny_settings(tmp_path, host=host))
    key, _ = container.store.create_key("boss", "admin")
    auth = Auth(container.settings, container.store)
    container.store.revoke_key(key.id)
    auth.require_safe_host()
    assert not auth.is_open
    assert not Auth(container.settings, container.store).is_open
    container.store.close()


@pytest.mark.parametrize(
    "path", ["/metrics", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"]
)
def test_pages_follow_the_rule_of_the_host(bare: Live, keyed: Keyed, path: str) -> None:
    assert bare.client.get(path).status_code == 200
    assert bare.client.get(path, headers={"Host": "evil.example"}).status_code == 403
    assert bare.client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403
    assert keyed.live.client.get(path, headers={"Host": "our.example"}).status_code == 200


def test_the_page_of_the_api_loads_from_this_server_alone(bare: Live) -> None:
    page = bare.client.get("/docs").text
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert loaded
    for url in loaded:
        assert url.startswith("/docs/assets/")
        assert bare.client.get(url).status_code == 200
    assert "://" not in page.replace(bare.url, "").replace("http://www.w3.org", "")


async def _read_nothing() -> Message:
    raise AssertionError("the body was read")


@pytest.mark.parametrize("entry", CLOSED, ids=named)
def test_the_door_never_asks_for_the_body(keyed: Keyed, entry: RouteAccess) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": entry.method,
        "path": path_of(entry),
        "headers": [(b"host", b"127.0.0.1"), (b"transfer-encoding", b"chunked")],
        "query_string": b"",
        "extensions": {},
    }
    container = keyed.live.container
    door = AccessMiddleware(create_app(container), container.auth, container.draining, 1024, 1024)
    asyncio.run(door(scope, _read_nothing, send))
    assert sent[0]["status"] == 401


def test_a_stream_of_bytes_ends_at_the_limit(tmp_path: Path) -> None:
    with serving(tiny_settings(tmp_path, max_body=2000)) as live:

        def chunks() -> Iterator[bytes]:
            for _ in range(10):
                yield b" " * 1000

        headers = {"Content-Type": "application/json"}
        answer = live.client.post("/generate", content=chunks(), headers=headers)
        assert answer.status_code == 413
        assert "ADAPTERMIX_MAX_BODY" in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("Host", ("127.0.0.1", "localhost")),
        ("Content-Type", ("application/json", "multipart/form-data")),
        ("Content-Encoding", ("identity", "gzip")),
        ("Authorization", ("Bearer x", "Bearer x")),
        ("X-Api-Key", ("x", "y")),
        ("Origin", ("http://localhost", "http://elsewhere")),
    ],
)
def test_a_header_that_decides_comes_once(
    keyed: Keyed, header: str, values: tuple[str, ...]
) -> None:
    lines = [f"{header}: {value}" for value in values]
    if header != "Host":
        lines.append("Host: 127.0.0.1")
    if header != "Authorization":
        lines.append(f"Authorization: Bearer {keyed.admin}")
    request = "\r\n".join(["POST /generate HTTP/1.1", *lines, "Content-Length: 2", "", "{}"])
    status, body = exchange(keyed.live.port, request.encode())
    assert (status, f"2 {header} headers: send one" in str(body)) == (400, True)


def chunked(entry: RouteAccess, port: int, *lines: str) -> bytes:
    head = [f"{entry.method} {path_of(entry)} HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines]
    head += ["Transfer-Encoding: chunked", "", "1", "x", "0", "", ""]
    return "\r\n".join(head).encode()


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.body == "none"], ids=named)
def test_a_route_without_a_body_takes_no_chunks(keyed: Keyed, entry: RouteAccess) -> None:
    head = chunked(entry, keyed.live.port, f"Authorization: Bearer {keyed.admin}")
    status, body = exchange(keyed.live.port, head)
    assert (status, "takes no body" in str(body)) == (413, True)


@pytest.mark.parametrize("entry", WITH_BODY, ids=named)
@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(
            ("content_encoding", value)
            for value in ("gzip", "br", "GZIP", "identity, gzip", "x" * 999)
        ),
        *(("transfer_encoding", value) for value in ("gzip, chunked", "identity, chunked")),
        *(("charset", value) for value in ("utf-16", "latin-1", '"utf-7"', "base64", "x" * 999)),
    ],
)
def test_a_body_in_another_encoding_is_refused(
    keyed: Keyed, entry: RouteAccess, header: str, value: str
) -> None:
    kind = TYPES[entry.body]
    if header == "charset":
        headers = {"content_type": f"{kind}; boundary=b; charset={value}"}
    else:
        headers = {"content_type": f"{kind}; boundary=b; charset=UTF-8", header: value}
    size = 0 if header == "transfer_encoding" else 1000
    status, body = keyed.attempt(entry, keyed.admin, size, **headers)
    assert status == 415
    assert value.strip('"')[:40] in str(body)
    assert len(str(body)) < 1024


def asked(keyed: Keyed, entry: RouteAccess, query: str) -> tuple[int, dict[str, Any]]:
    path = f"{path_of(entry)}?{query}"
    return keyed.attempt(RouteAccess(entry.method, path, entry.access), keyed.admin)


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.query is not None], ids=named)
@pytest.mark.parametrize(
    "query", ["tagg=x", "stream=true", "a", "=", "%ff=1", "x" * 9000, "a=1&a=2"]
)
def test_a_query_parameter_that_is_not_known_is_refused(
    keyed: Keyed, entry: RouteAccess, query: str
) -> None:
    status, body = asked(keyed, entry, query)
    assert status == 422
    told = str(body)
    assert "query parameter" in told
    assert all(name in told for name in entry.query or ())
    assert len(told) < 1024


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.query is None], ids=named)
def test_what_watches_a_server_may_add_a_query(keyed: Keyed, entry: RouteAccess) -> None:
    assert keyed.live.client.get(f"{entry.path}?ts=1&ts=2").status_code == 200


def test_the_door_knows_the_query_parameters_of_every_route(keyed: Keyed) -> None:
    operations = {
        (method.upper(), path): operation
        for path, methods in create_app(keyed.live.container).openapi()["paths"].items()
        for method, operation in methods.items()
    }
    for entry in ENTRIES:
        told = operations.get((entry.method, re.sub(r":path\}", "}", entry.path)), {})
        parameters = told.get("parameters", ())
        assert set(entry.query or ()) == {one["name"] for one in parameters if one["in"] == "query"}


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.query], ids=named)
def test_a_query_parameter_comes_once(keyed: Keyed, entry: RouteAccess) -> None:
    for name in entry.query or ():
        status, body = asked(keyed, entry, f"{name}=true&{name}=true")
        assert (status, f"{name} = two query parameters" in str(body)) == (422, True)
        assert asked(keyed, entry, f"{name}=true")[0] in (200, 404)


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_a_path_ends_where_the_route_does(keyed: Keyed, entry: RouteAccess) -> None:
    status, _ = keyed.attempt(
        RouteAccess(entry.method, f"{path_of(entry)}%0A", "admin"), keyed.admin
    )
    assert status in (404, 405, 422)


def test_a_transfer_encoding_comes_once(keyed: Keyed) -> None:
    entry = next(one for one in ENTRIES if one.path == "/generate")
    head = chunked(
        entry,
        keyed.live.port,
        f"Authorization: Bearer {keyed.admin}",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
    )
    status, body = exchange(keyed.live.port, head)
    assert (status, body["error_type"]) == (400, "bad_request")
