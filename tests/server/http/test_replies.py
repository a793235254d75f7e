"""Replies are written in parts that are small, and say what the whole says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json
from starlette.types import Message

from server.http import replies
from server.http.replies import PartedResponse, json_of, json_parts
from server.schemas.adapters import TextsReply

SOON = 0.05  # seconds of what would wait for ever
LEAVES = st.none() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.one_of(
    st.lists(LEAVES, max_size=80),
    st.lists(st.lists(st.floats(), max_size=50), max_size=50),
    st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: text * 2000),
)


@given(value=VALUES)
def test_parts_say_what_the_whole_says(value: Any) -> None:
    assert json_of(value) == b"".join(json_parts(value)) == to_json(value, inf_nan_mode="null")


LONG = {
    "long texts": ["\x00é" * 16_384] * 200,
    "a long text": ["𝄞\n" * 1_000_000],
    "short texts": ["a"] * 100_000,
    "texts": [f"word {index}" * (index % 700) for index in range(4096)],
}


@pytest.mark.parametrize("name", LONG)
def test_no_call_writes_much(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    def watched(value: Any, **options: Any) -> bytes:
        nonlocal longest
        longest = max(longest, len(written := to_json(value, **options)))
        return written

    monkeypatch.setattr(replies, "to_json", watched)
    reply = TextsReply(name="a", texts=LONG[name])
    parts = json_parts(reply)
    assert json.loads(b"".join(parts)) == {"name": "a", "texts": LONG[name]}
    assert longest < 1 << 18
    assert max(map(len, parts)) < 1 << 20


@pytest.mark.parametrize("spec", ["2.3", "2.4"])  # by which starlette listens for a client's going
def test_a_long_answer_that_nobody_takes_ends(spec: str) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 2:
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def answer() -> None:
        scope = {"type": "http", "asgi": {"spec_version": spec}}
        await PartedResponse([b"a", b"b", b"c"], patience=SOON)(scope, receive, send)

    asyncio.run(answer())
    assert [message.get("body") for message in sent] == [None, b"a", b"b"]
