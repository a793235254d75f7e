"""The address that a server says it is ready on is one that clients take."""

from __future__ import annotations

import httpx
import pytest

from server.serving import server_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:8000"),
    ],
)
def test_an_address_of_any_kind(host: str, url: str) -> None:
    assert server_url(host, 8000) == url
    assert httpx.URL(url).port == 8000
