"""The token router against a real worker: interleaved sessions, decoding, death, deadlines."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.sessions import SimilarityTokenRouter, TokenRouterTimeouts
from router_engine.routers.scoring import SimilarityParams, cosine_scores, weights_from_scores
from tests.router_engine.routers.conftest import Centroids
from tests.support.waiting import HANG_SECONDS

PATIENT = TokenRouterTimeouts(HANG_SECONDS, HANG_SECONDS)
CANDIDATES = ("a", "b", "c")
ROUTING = TokenRouting("similarity")


class Desk:
    """A router with its wake-up call, used as the engine uses it."""

    def __init__(self, endpoint: str, timeouts: TokenRouterTimeouts = PATIENT) -> None:
        self._came = threading.Event()
        self.router = SimilarityTokenRouter(endpoint, wake=self._came.set, timeouts=timeouts)

    def answers(self, count: int) -> list[RoutedWeights]:
        """The next `count` answers, in the order in which they came."""
        found: list[RoutedWeights] = []
        while len(found) < count:
            assert self._came.wait(HANG_SECONDS), f"{len(found)} of {count} answers came"
            self._came.clear()
            found += self.router.poll()
        assert len(found) == count
        return found


def put_centroids(endpoint: str, centroids: Centroids) -> None:
    async def put() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            await client.put_centroids(centroids)

    asyncio.run(put())


@pytest.fixture
def desk(endpoint: str, centroids: Centroids) -> Iterator[Desk]:
    put_centroids(endpoint, centroids)
    desk = Desk(endpoint)
    yield desk
    desk.router.close()


@pytest.fixture(scope="module")
def encoder(encoder_dir: Path) -> SentenceEncoder:
    return SentenceEncoder(encoder_dir)


def kill(worker: EncoderProcess) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL


def test_weights_are_of_the_decoded_text_so_far(
    desk: Desk, encoder: SentenceEncoder, centroids: Centroids, tokenizer_dir: Path
) -> None:
    """Special tokens are left out, and a character cut in two decodes as the whole text does."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    ids = [1, *tokenizer.encode("What is 3é"), 2]  # the é is two tokens
    steps = [ids[:-3], ids[-3:-2], ids[-2:]]
    desk.router.begin("r", steps[0], CANDIDATES, ROUTING)
    got = desk.answers(1)
    for step in steps[1:]:
        desk.router.extend("r", step)
        got += desk.answers(1)
    counts = [len(ids) - 3, len(ids) - 2, len(ids)]
    assert [answer.num_tokens for answer in got] == counts
    for answer in got:
        text = tokenizer.decode(ids[: answer.num_tokens], skip_special_tokens=True)
        assert answer.weights == pytest.approx(expected(encoder, centroids, text), abs=1e-6)
    assert got[0].weights != got[2].weights


def expected(encoder: SentenceEncoder, centroids: Centroids, text: str) -> Sequence[float]:
    scores = cosine_scores(encoder.encode([text])[0], [centroids[name] for name in CANDIDATES])
    return weights_from_scores(scores, SimilarityParams())


def test_sessions_interleave_and_each_is_answered_in_order(desk: Desk) -> None:
    names = [f"r{i}" for i in range(6)]
    for name in names:
        desk.router.begin(name, [70 + int(name[1]), 80, 90], CANDIDATES, ROUTING)
    for round_ in range(4):
        for name in names:
            desk.router.extend(name, [100 + round_])
    answers = desk.answers(len(names) * 5)
    for name in names:
        mine = [answer for answer in answers if answer.request_id == name]
        assert [answer.num_tokens for answer in mine] == [3, 4, 5, 6, 7]
        assert all(answer.error is None and len(answer.weights) == 3 for answer in mine)


def test_two_routers_and_a_client_share_the_worker(desk: Desk, endpoint: str) -> None:
    async def embed() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            assert (await client.embed(["x"] * 20)).shape == (20, 32)

    other = Desk(endpoint)
    desk.router.begin("same", [70, 71], CANDIDATES, ROUTING)
    other.router.begin("same", [90, 91], CANDIDATES, ROUTING)
    asyncio.run(embed())
    mine, theirs = desk.answers(1)[0], other.answers(1)[0]
    other.router.close()
    assert mine.weights != theirs.weights


def test_parameters_reach_the_worker(desk: Desk) -> None:
    sharp = TokenRouting("similarity", {"temperature": 0.001})
    desk.router.begin("sharp", [70, 71], CANDIDATES, sharp)
    desk.router.begin("top", [70, 71], CANDIDATES, TokenRouting("similarity", {"top_k": 1}))
    first, second = desk.answers(2)
    assert first.weights == pytest.approx(second.weights, abs=1e-3)
    assert sorted(second.weights) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("candidates", "params", "said", "is_away"),
    [
        (("a", "gone"), {}, "no centroid of gone", True),  # a worker started anew will be given it
        (CANDIDATES, {"colour": "red"}, "no parameter 'colour'", False),
    ],
)
def test_what_cannot_be_routed_fails_by_name(
    desk: Desk, candidates: tuple[str, ...], params: dict[str, str], said: str, *, is_away: bool
) -> None:
    desk.router.begin("r", [70], candidates, TokenRouting("similarity", dict(params)))
    (answer,) = desk.answers(1)
    assert answer.request_id == "r"
    assert answer.weights == ()
    assert said in str(answer.error)
    assert answer.is_away is is_away


def test_an_ended_session_does_not_answer_and_its_name_is_free(desk: Desk) -> None:
    desk.router.begin("r", [70], CANDIDATES, ROUTING)
    desk.answers(1)
    desk.router.end("r")
    desk.router.extend("r", [71])
    desk.router.begin("r", [70, 71, 72], CANDIDATES, ROUTING)
    assert desk.answers(1)[0].num_tokens == 3


def test_a_killed_worker_fails_live_sessions_and_later_ones_wait_for_it(
    desk: Desk, worker: EncoderProcess, endpoint: str, centroids: Centroids
) -> None:
    for name in ("r", "s"):
        desk.router.begin(name, [70, 71], CANDIDATES, ROUTING)
    desk.answers(2)
    kill(worker)
    failed = desk.answers(2)
    assert {answer.request_id for answer in failed} == {"r", "s"}
    assert all("died" in str(answer.error) and answer.is_away for answer in failed)
    desk.router.extend("r", [72])  # it has failed: there is nothing more to say of it
    late = Desk(endpoint, TokenRouterTimeouts(connect=HANG_SECONDS))
    late.router.begin("gone", [70], CANDIDATES, ROUTING)
    late.router.begin("waiting", [70], CANDIDATES, ROUTING)
    late.router.end("gone")
    worker.restart()
    (answer,) = late.answers(1)
    late.router.close()
    assert answer.request_id == "waiting"
    assert "no centroid of a, b, c" in str(answer.error)  # this worker was given none
    assert answer.is_away
    put_centroids(endpoint, centroids)
    desk.router.begin("t", [70, 71], CANDIDATES, ROUTING)
    (answer,) = desk.answers(1)
    assert (answer.request_id, answer.error) == ("t", None)


def test_a_request_does_not_wait_for_ever(tmp_path: Path) -> None:
    desk = Desk(f"ipc://{tmp_path / 'nobody'}", TokenRouterTimeouts(connect=0.05))
    desk.router.begin("r", [70, 71], CANDIDATES, ROUTING)
    (answer,) = desk.answers(1)
    desk.router.close()
    assert answer == RoutedWeights("r", 2, error="the encoder worker is away", is_away=True)


def test_a_silent_worker_fails_the_request(worker: EncoderProcess, endpoint: str) -> None:
    put_centroids(endpoint, {})
    desk = Desk(endpoint, TokenRouterTimeouts(HANG_SECONDS, answer=0.2))
    desk.router.begin("first", [70], ("nobody",), ROUTING)
    desk.answers(1)  # the connection stands
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        desk.router.begin("r", [70], CANDIDATES, ROUTING)
        (answer,) = desk.answers(1)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    desk.router.close()
    assert answer.error == "the encoder worker gave no answer in 0.2 s"
    assert answer.is_away


def test_close_is_final_and_may_be_repeated(endpoint: str) -> None:
    router = SimilarityTokenRouter(endpoint)
    router.close()
    router.close()
    assert list(router.poll()) == []
