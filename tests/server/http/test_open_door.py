"""The door where no key is asked for: kinds of bodies, parts of pages, other protocols."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.server.live import Live


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/vnd.api+json"]
)
def test_json_may_be_of_a_kind_of_its_own(bare: Live, kind: str) -> None:
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 1}}).encode()
    answer = bare.client.post("/generate", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text


def test_websockets_are_closed(bare: Live) -> None:
    answer = httpx.get(
        f"{bare.url}/generate",
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
            "Sec-WebSocket-Version": "13",
        },
    )
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    "kind",
    [
        *("application/x/y+json", "application/+json", "application/a b+json", "application//json"),
        *("application/json+", "application/jsonx", "application/json,text/plain", "text/x+json"),
        "/",
    ],
)
def test_what_is_nearly_json_is_refused(bare: Live, kind: str) -> None:
    answer = bare.client.post("/generate", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]


@pytest.mark.parametrize(
    "given", ["bytes=5-1", "bytes=a-b", "bytes=99999999-", "bytes=-0", "lines=1-2", "bytes="]
)
def test_a_range_that_cannot_be_is_told_in_the_api_s_shape(bare: Live, given: str) -> None:
    path = "/docs/assets/swagger-ui.css"
    answer = bare.client.get(path, headers={"Range": given})
    assert answer.status_code in (400, 416)
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error"]
    assert bare.client.get(path, headers={"Range": "bytes=0-3"}).status_code == 206
