"""Names of tests, which all workers must find the same, whenever each of them looks."""

from __future__ import annotations

import gzip

import pytest


@pytest.mark.parametrize("content", [gzip.compress(b""), b"abc"])
def test_bytes_are_in_no_name(content: bytes, request: pytest.FixtureRequest) -> None:
    """An archive that is made where a test is collected holds the second at which it was."""
    assert request.node.name == f"test_bytes_are_in_no_name[content{int(content == b'abc')}]"
