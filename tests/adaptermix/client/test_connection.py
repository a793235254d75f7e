"""Before a server of ours answers: no server, another program, a stream that is cut."""

from __future__ import annotations

import json
from operator import methodcaller

import pytest

from adaptermix import (
    BrokenStreamError,
    Client,
    ConnectionFailedError,
    ForeignAnswerError,
    InvalidInputError,
    ServerUnreachableError,
)
from tests.adaptermix.client.asking import Asker
from tests.adaptermix.client.conftest import KINDS
from tests.server.foreign import Foreign

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"[" * 100_000, b'{"adapters": [{}]}'])
def test_an_answer_of_another_program(foreign: Foreign, stranger: Asker, body: bytes) -> None:
    foreign.answer(body)
    for use in (
        lambda c: c.adapters.list(),
        lambda c: c.generate("a"),
        lambda c: c.metrics(),
        lambda c: c.chat([], model=None),
    ):
        with pytest.raises(ForeignAnswerError, match="another server's"):
            stranger(use)
    with pytest.raises(ForeignAnswerError):
        stranger.pieces(lambda c: c.stream("a"))


def test_what_a_later_server_says_more_is_passed_over(foreign: Foreign, stranger: Asker) -> None:
    foreign.answer(b'{"status": "live", "later": {"a": 1}}')
    assert stranger(lambda c: c.live()).status == "live"


def test_a_stream_that_is_cut(foreign: Foreign, stranger: Asker) -> None:
    token = {"id": 1, "text": "hi", "logprob": -1.0, "special": False}
    frame = json.dumps({"token": token, "generated_text": None, "details": None}).encode()
    foreign.answer(b"data: %b\n\n" % frame, "text/event-stream")
    with pytest.raises(BrokenStreamError, match="cut"):
        stranger.pieces(lambda c: c.stream("a"))
    foreign.answer(b"", "text/event-stream")
    with pytest.raises(BrokenStreamError, match="cut"):
        stranger.pieces(lambda c: c.stream_complete("a", model="b"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_server(kind: str) -> None:
    ask = Asker(NOWHERE, kind == "AsyncClient")
    for use in (lambda c: c.info(), lambda c: c.generate("a")):
        with pytest.raises(ServerUnreachableError, match=NOWHERE) as caught:
            ask(use)
        assert isinstance(caught.value, ConnectionFailedError)
    with pytest.raises(ServerUnreachableError):
        ask.pieces(lambda c: c.stream("a"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("url", "key", "words"),
    [
        ("nonsense", None, "nonsense"),
        ("http://[::1", None, r"\[::1"),
        ("http://a..b", None, "is no address"),
        (NOWHERE, "schl\u00fcssel", "API key"),
    ],
)
def test_addresses_and_keys_that_are_none(kind: str, url: str, key: str | None, words: str) -> None:
    ask = Asker(url, kind == "AsyncClient", {"api_key": key})
    with pytest.raises(InvalidInputError, match=words):
        ask(lambda c: c.info())


def test_what_json_cannot_say_is_not_sent(stranger: Asker) -> None:
    for prompt in ("\ud800", {1, 2}):
        with pytest.raises(InvalidInputError, match="JSON"):
            stranger(methodcaller("generate", prompt))


def test_an_address_and_a_key_of_the_environment(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERMIX_URL", foreign.url)
    monkeypatch.setenv("ADAPTERMIX_KEY", "a-key")
    foreign.answer(b'{"status": "live"}')
    with Client() as client:
        assert client.address == foreign.url
        assert client.live().status == "live"
    with Client(NOWHERE) as elsewhere:
        assert elsewhere.address == NOWHERE
