"""The worker's logic without its process: order, batching, bounds, errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from router_engine.model.tiny import tiny_tokenizer
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.service import EncoderService
from router_engine.routers.scoring import (
    SimilarityParams,
    Window,
    cosine_scores,
    weights_from_scores,
)
from tests.router_engine.routers.conftest import Centroids

CANDIDATES = ("a", "b", "c")
TOKENIZER = tiny_tokenizer()


class CountingEncoder(SentenceEncoder):
    """The encoder, noting how many texts came together."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.calls: list[int] = []

    def encode(self, texts: Sequence[str], window: Window = "tail") -> NDArray[np.float32]:
        self.calls.append(len(texts))
        if any("boom" in text for text in texts):
            raise RuntimeError("out of memory")
        return super().encode(texts, window)


@pytest.fixture
def encoder(encoder_dir: Path) -> CountingEncoder:
    return CountingEncoder(encoder_dir)


@pytest.fixture
def service(encoder: CountingEncoder, centroids: Centroids) -> EncoderService:
    service = EncoderService(
        encoder, lambda ids: str(TOKENIZER.decode(ids)), max_batch=4, max_sessions=3
    )
    packed = {name: m.pack_vector(vector) for name, vector in centroids.items()}
    assert ask(service, m.PutEncoderCentroids(0, packed)) == [m.Done(0)]
    return service


def ask(service: EncoderService, *asks: m.Ask, client: bytes = b"one") -> list[m.Reply]:
    for each in asks:
        service.receive(client, m.encode(each))
    return [reply for _, reply in service.work()]


def begin(name: str, text: str, **params: Any) -> m.Begin:
    return m.Begin(name, tuple(TOKENIZER.encode(text)), CANDIDATES, params)


def expected(encoder: SentenceEncoder, centroids: Centroids, text: str) -> tuple[float, ...]:
    scores = cosine_scores(encoder.encode([text])[0], [centroids[name] for name in CANDIDATES])
    return weights_from_scores(scores, SimilarityParams())


def test_weights_come_from_the_text_so_far(
    service: EncoderService, encoder: CountingEncoder, centroids: Centroids
) -> None:
    more = tuple(TOKENIZER.encode(" wide web"))
    replies = ask(service, begin("s", "world"), m.Extend("s", more))
    for reply, text, count in zip(replies, ("world", "world wide web"), (5, 14), strict=True):
        assert isinstance(reply, m.SessionRouted)
        assert reply.num_tokens == count
        assert reply.weights == pytest.approx(expected(encoder, centroids, text), abs=1e-6)


def test_all_that_waits_shares_a_batch_and_is_answered_in_order(
    service: EncoderService, encoder: CountingEncoder
) -> None:
    route = m.Route(7, "from http", CANDIDATES, {})
    replies = ask(service, begin("s", "aa"), route, begin("t", "bb"), m.Extend("s", (50,)))
    assert encoder.calls == [4]
    assert [getattr(reply, "session", "http") for reply in replies] == ["s", "http", "t", "s"]


def test_a_batch_is_bounded(service: EncoderService, encoder: CountingEncoder) -> None:
    asks = [m.Route(i, f"text {i}", CANDIDATES, {}) for i in range(6)]
    assert len(ask(service, *asks)) == 4
    assert len(service.work()) == 2
    assert encoder.calls == [4, 2]
    assert service.pending == 0


def test_windows_may_differ_in_a_batch(service: EncoderService) -> None:
    text = "a b c d " * 40 + "99999"
    tail, head, again = ask(
        service,
        m.Route(1, text, CANDIDATES, {}),
        m.Route(2, text, CANDIDATES, {"window": "head"}),
        m.Route(3, text, CANDIDATES, {"window": "tail"}),
    )
    assert isinstance(tail, m.Routed)
    assert isinstance(head, m.Routed)
    assert isinstance(again, m.Routed)
    assert tail.weights == again.weights
    assert tail.weights != head.weights


def test_embedding_comes_after_live_texts_one_message_a_turn(
    service: EncoderService, encoder: CountingEncoder
) -> None:
    embeds = [m.Embed(i, ("x", "y"), "head") for i in range(2)]
    replies = ask(service, *embeds, m.Route(9, "now", CANDIDATES, {}))
    assert [type(reply) for reply in replies] == [m.Routed, m.Embedded]
    assert [reply.id for _, reply in service.work() if isinstance(reply, m.Embedded)] == [1]
    assert encoder.calls == [1, 2, 2]


def test_an_unknown_digest_is_named(service: EncoderService) -> None:
    reply, other = ask(service, m.Begin("s", (5,), ("a", "zz"), {}), m.Route(1, "x", ("yy",), {}))
    assert isinstance(reply, m.SessionFailed)
    assert reply.error == "the encoder worker has no centroid of zz"
    assert reply.is_away  # one that was started anew will be given it
    assert other == m.Failed(1, "the encoder worker has no centroid of yy", is_away=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (m.Begin("s", (5,), CANDIDATES, {"temperature": -1.0}), "temperature = -1.0"),
        (m.Begin("s", (5,), (), {}), "no candidates"),
        (m.Extend("never", (5,)), "no session 'never'"),
        (m.PutEncoderCentroids(1, {"a": b"123"}), "buffer size"),
        (m.PutEncoderCentroids(1, {"a": m.pack_vector([np.nan] * 32)}), "centroid of a must be"),
        (m.PutEncoderCentroids(1, {"a": m.pack_vector([1.0] * 64)}), "centroid of a must be"),
        (m.Embed(1, ("x",) * 65, "tail"), "65 texts"),
        (m.Retrieve(1, "x", (), {}), "no candidates"),
        (m.Retrieve(1, "x", ("t",), {"k": 0}), "k = 0"),
        (m.PutExamples(1, {"t": b"123"}), "buffer size"),
        (m.PutExamples(1, {"t": b""}), "examples of t must be"),
    ],
)
def test_what_cannot_be_done_is_answered(service: EncoderService, wrong: m.Ask, said: str) -> None:
    (reply,) = ask(service, wrong)
    assert isinstance(reply, m.Failed | m.SessionFailed)
    assert said in reply.error


@pytest.mark.parametrize(
    ("payload", "id_"),
    [
        (b"\xc1junk", None),
        (msgspec.msgpack.encode({"type": "Reboot", "id": 5}), 5),
        (msgspec.msgpack.encode({"type": "Route", "id": 6, "text": 1}), 6),
        (msgspec.msgpack.encode([1, 2]), None),
    ],
)
def test_an_unknown_message_gets_an_error(
    service: EncoderService, payload: bytes, id_: int | None
) -> None:
    service.receive(b"one", payload)
    ((client, reply),) = service.work()
    assert client == b"one"
    assert isinstance(reply, m.Failed)
    assert reply.id == id_
    assert reply.error.startswith("unreadable ask")


def test_a_failing_encoder_fails_its_batch_and_not_the_worker(service: EncoderService) -> None:
    replies = ask(service, begin("s", "boom"), m.Embed(1, ("boom",), "tail"))
    assert [reply.error for reply in replies if isinstance(reply, m.SessionFailed | m.Failed)] == [
        "the sentence encoder failed: out of memory"
    ] * 2
    assert isinstance(ask(service, begin("t", "fine"))[0], m.SessionRouted)


def test_clients_do_not_share_sessions(service: EncoderService) -> None:
    ask(service, begin("s", "mine"))
    (reply,) = ask(service, m.Extend("s", (5,)), client=b"two")
    assert isinstance(reply, m.SessionFailed)


def test_a_client_that_left_is_forgotten(service: EncoderService) -> None:
    ask(service, begin("s", "mine"))
    service.forget(b"one")
    assert isinstance(ask(service, m.Extend("s", (5,)))[0], m.SessionFailed)


def test_the_session_idle_for_longest_gives_way(service: EncoderService) -> None:
    ask(service, *(begin(name, name) for name in "stuv"))
    first, second = ask(service, m.Extend("s", (5,)), m.Extend("v", (5,)))
    assert isinstance(first, m.SessionFailed)
    assert isinstance(second, m.SessionRouted)


def test_an_ended_session_is_gone(service: EncoderService) -> None:
    ask(service, begin("s", "x"), m.End("s"), m.End("never"))
    assert isinstance(ask(service, m.Extend("s", (5,)))[0], m.SessionFailed)


def test_a_new_centroid_replaces_the_old(service: EncoderService) -> None:
    route = m.Route(1, "text", CANDIDATES, {})
    (before,) = ask(service, route)
    _, after = ask(service, m.PutEncoderCentroids(2, {"a": m.pack_vector([1.0] * 32)}), route)
    assert isinstance(before, m.Routed)
    assert isinstance(after, m.Routed)
    assert before.weights != after.weights


def test_a_session_keeps_the_centroids_that_it_began_with(service: EncoderService) -> None:
    (first,) = ask(service, begin("s", "text"))
    put = m.PutEncoderCentroids(2, {"a": m.pack_vector([1.0] * 32)})
    _, second, fresh = ask(service, put, m.Extend("s", ()), begin("t", "text"))
    assert isinstance(first, m.SessionRouted)
    assert isinstance(second, m.SessionRouted)
    assert isinstance(fresh, m.SessionRouted)
    assert second.weights == first.weights
    assert fresh.weights != first.weights


def test_lacking_examples_are_named_and_then_used(
    service: EncoderService, encoder: CountingEncoder
) -> None:
    retrieve = m.Retrieve(1, "text", ("t", "u"), {})
    assert ask(service, retrieve) == [m.Retrieved(1, lacking=("t", "u"))]
    rows = encoder.encode(["text", "other"])
    put = m.PutExamples(2, {"t": m.pack_vector(rows), "u": m.pack_vector(-rows)})
    done, reply = ask(service, put, retrieve)
    assert done == m.Done(2)
    assert isinstance(reply, m.Retrieved)
    assert reply.weights == pytest.approx((1.0, 0.0), abs=1e-3)
    assert encoder.calls == [1, 2, 1]


def test_below_the_threshold_a_session_has_no_weights(service: EncoderService) -> None:
    above, below = ask(
        service, begin("s", "text", threshold=-1.0), begin("t", "text", threshold=1.0)
    )
    assert isinstance(above, m.SessionRouted)
    assert isinstance(below, m.SessionRouted)
    assert sum(above.weights) == pytest.approx(1)
    assert below.weights == (0.0, 0.0, 0.0)


def test_a_negative_winner_under_paper_is_told_once(
    service: EncoderService, encoder: CountingEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    opposite = m.pack_vector(-encoder.encode(["text"])[0])
    put = m.PutEncoderCentroids(1, {"anti": opposite})
    route = m.Route(2, "text", ("anti",), {"scoring": "paper"})
    with caplog.at_level(logging.WARNING):
        ask(service, put, route, route)
    assert [record.message for record in caplog.records if "pushes" in record.message] == [
        "paper scoring multiplied a negative largest score (-1.000), which pushes the "
        "best candidate down; said once for the life of this worker"
    ]
