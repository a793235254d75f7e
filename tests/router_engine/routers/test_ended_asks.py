"""Nothing is encoded for a request that has ended, whichever way it asked and ended."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from router_engine.model.tiny import tiny_tokenizer
from router_engine.request import TokenRouting
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.service import EncoderService
from router_engine.routers.encoder.sessions import SimilarityTokenRouter, TokenRouterTimeouts
from router_engine.routers.encoder.worker import listen, serve
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.scoring import Window
from tests.router_engine.routers.conftest import Centroids
from tests.support.waiting import HANG_SECONDS, wait_for

CANDIDATES = ("a", "b", "c")
TOKENIZER = tiny_tokenizer()
MANY = 100  # requests that end, many batches of them
LIVE = m.Route(-1, "live", CANDIDATES, {})
ROUTING = TokenRouting("similarity")


class NotingEncoder(SentenceEncoder):
    """The encoder, noting what it read."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.read: list[str] = []

    def encode(self, texts: Sequence[str], window: Window = "tail") -> NDArray[np.float32]:
        self.read += texts
        return super().encode(texts, window)


@pytest.fixture
def encoder(encoder_dir: Path) -> NotingEncoder:
    return NotingEncoder(encoder_dir)


@pytest.fixture
def service(encoder: NotingEncoder, centroids: Centroids) -> EncoderService:
    service = EncoderService(encoder, lambda ids: str(TOKENIZER.decode(ids)), max_batch=4)
    packed = {name: m.pack_vector(vector) for name, vector in centroids.items()}
    service.receive(b"one", m.encode(m.PutEncoderCentroids(0, packed)))
    assert service.work() == [(b"one", m.Done(0))]
    return service


def take_in(service: EncoderService, socket: zmq.Socket[bytes], ends: int) -> None:
    """What comes to the worker's socket until so many asks have been taken back.

    That is still under way when a client has sent it, and a worker that works before it has come is
    right to encode.
    """
    socket.setsockopt(zmq.RCVTIMEO, int(1000 * HANG_SECONDS))
    while ends:
        client, *_, payload = socket.recv_multipart()
        service.receive(client, payload)
        ends -= isinstance(m.decode_ask(payload), m.End | m.CancelQuery)


@contextmanager
def served(service: EncoderService, socket: zmq.Socket[bytes]) -> Iterator[None]:
    """The worker's loop over what has come to its socket so far, and what comes; then no more."""
    end, ring = os.pipe()
    thread = threading.Thread(target=serve, args=(service, socket, end))
    thread.start()
    try:
        yield
    finally:
        os.write(ring, b"!")
        thread.join()
        os.close(end)
        os.close(ring)
        socket.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def begin(name: str, text: str) -> m.Begin:
    return m.Begin(name, ids(text), CANDIDATES, {})


ENDED: dict[str, list[m.Ask]] = {
    "begun": [begin("s", "dead"), m.End("s")],
    "extended": [begin("s", "dead"), m.Extend("s", ids("er")), m.End("s")],
    "refused": [begin("s", "dead"), m.Begin("s", (), ("gone",), {})],
    "route": [m.Route(1, "dead", CANDIDATES, {}), m.CancelQuery(1)],
    "retrieve": [m.Retrieve(1, "dead", ("t",), {}), m.CancelQuery(1)],
    "embed": [m.Embed(1, ("dead", "deader"), "tail"), m.CancelQuery(1)],
}


@pytest.mark.parametrize("asks", ENDED.values(), ids=list(ENDED))
def test_the_worker_drops_what_waits_of_it(
    service: EncoderService, encoder: NotingEncoder, asks: list[m.Ask]
) -> None:
    for ask in asks * MANY:
        service.receive(b"one", m.encode(ask))
    service.receive(b"one", m.encode(LIVE))
    assert isinstance(service.work()[-1][1], m.Routed)
    assert encoder.read == ["live"]
    assert (service.pending, service.sessions) == (0, 0)


def test_of_a_session_begun_anew_only_the_new_text_is_read(
    service: EncoderService, encoder: NotingEncoder
) -> None:
    for text in ("dead", "deader", "live"):
        service.receive(b"one", m.encode(begin("s", text)))
    assert len(service.work()) == 1
    assert encoder.read == ["live"]


def test_what_a_client_that_left_had_asked_is_dropped(
    service: EncoderService, encoder: NotingEncoder
) -> None:
    asks = (begin("s", "dead"), m.Route(1, "dead", CANDIDATES, {}), m.Embed(2, ("dead",), "tail"))
    for ask in asks:
        service.receive(b"gone", m.encode(ask))
    service.forget(b"gone")
    assert service.pending == 0
    assert service.work() == []


def test_an_end_drops_nothing_of_others(service: EncoderService, encoder: NotingEncoder) -> None:
    mine = (begin("s", "mine"), m.Route(1, "mine", CANDIDATES, {}))
    others = (m.End("s"), m.CancelQuery(1), m.CancelQuery(7), m.End("never"))
    for client, asks in ((b"one", mine), (b"two", others)):
        for ask in asks:
            service.receive(client, m.encode(ask))
    replies = [reply for _, reply in service.work()]
    assert [type(reply) for reply in replies] == [m.SessionRouted, m.Routed]


def test_a_session_that_gives_way_is_told_so(encoder: NotingEncoder, centroids: Centroids) -> None:
    service = EncoderService(encoder, lambda ids: str(TOKENIZER.decode(ids)), max_sessions=1)
    packed = {name: m.pack_vector(vector) for name, vector in centroids.items()}
    for ask in (m.PutEncoderCentroids(0, packed), begin("s", "first"), begin("t", "second")):
        service.receive(b"one", m.encode(ask))
    _, (_, gone), (_, routed) = service.work()
    assert gone == m.SessionFailed(
        "s", 0, "the encoder worker holds too many sessions", is_away=True
    )
    assert isinstance(routed, m.SessionRouted)
    assert encoder.read == ["second"]


def test_asks_that_are_cancelled_or_given_up_are_taken_back(
    service: EncoderService,
    encoder: NotingEncoder,
    context: zmq.Context[zmq.Socket[bytes]],
    tmp_path: Path,
) -> None:
    endpoint = f"ipc://{tmp_path / 'encoder'}"
    socket = listen(context, endpoint)  # who listens and does not read is a worker that is busy

    async def talk() -> None:
        async with (
            EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client,
            EncoderClient(endpoint, connect_seconds=HANG_SECONDS, answer_seconds=0.01) as hasty,
        ):
            with pytest.raises(RouterUnavailableError, match="no answer"):
                await hasty.route("dead", CANDIDATES, {})
            await client.connected()
            asks = [client.route("dead", CANDIDATES, {}), client.retrieve("dead", ("t",), {})]
            tasks = [asyncio.ensure_future(ask) for ask in asks]
            while client.waiting < len(tasks):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.to_thread(take_in, service, socket, 3)
            with served(service, socket):
                assert len(await client.route("live", CANDIDATES, {})) == len(CANDIDATES)
                await hasty.connected()

    asyncio.run(talk())
    assert encoder.read == ["live"]


@pytest.mark.parametrize(
    "timeouts",
    [TokenRouterTimeouts(0.01, HANG_SECONDS), TokenRouterTimeouts(HANG_SECONDS, 0.01)],
    ids=["away", "silent"],
)
def test_sessions_that_are_given_up_are_taken_back(
    service: EncoderService,
    encoder: NotingEncoder,
    context: zmq.Context[zmq.Socket[bytes]],
    tmp_path: Path,
    timeouts: TokenRouterTimeouts,
) -> None:
    """While there is no worker, or one that does not read: of all these it hears too late."""
    endpoint = f"ipc://{tmp_path / 'encoder'}"
    is_away = timeouts.connect < timeouts.answer
    socket = None if is_away else listen(context, endpoint)
    router = SimilarityTokenRouter(endpoint, timeouts=timeouts)
    failed: set[str] = set()
    names = {f"dead{i}" for i in range(MANY)}
    for name in names:
        router.begin(name, ids("dead"), CANDIDATES, ROUTING)
        router.extend(name, ids("er"))

    def all_failed() -> bool:
        failed.update(answer.request_id for answer in router.poll() if answer.error)
        return failed == names

    wait_for(all_failed)
    for name in names:
        router.end(name)
    patient = TokenRouterTimeouts(HANG_SECONDS, HANG_SECONDS)
    asking = router if is_away else SimilarityTokenRouter(endpoint, timeouts=patient)
    if socket is not None:
        take_in(service, socket, MANY)
    with served(service, socket or listen(context, endpoint)):
        wait_for(lambda: _is_routed(asking))
        asking.end("live")
        wait_for(lambda: service.sessions == 0)
    asking.close()
    router.close()
    assert set(encoder.read) == {"live"}


def _is_routed(router: SimilarityTokenRouter) -> bool:
    """Ask again: a router may have given up before it was connected."""
    router.begin("live", ids("live"), CANDIDATES, ROUTING)
    return any(answer.error is None for answer in router.poll())
