"""The router `retrieval` over a real worker: examples come when they are lacking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_engine.routers.centroids import CentroidService
from router_engine.routers.encoder import encoder_messages as m
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.examples import MAX_SETS
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.service import EncoderService
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.retrieval import RetrievalRequestRouter
from router_engine.routers.scoring import softmax
from tests.router_engine.routers.shelf import MemoryShelf
from tests.support.waiting import HANG_SECONDS

TEXTS = {
    "sha256:math": ["3 + 4 = 7", "what is 9 * 9?", "0123456789"],
    "sha256:code": ["def f(x):", "return x"],
    "sha256:prose": ["the quick brown fox", "once upon a time", "so long"],
}
NAMES = tuple(TEXTS)
Desk = tuple[RetrievalRequestRouter, CentroidService, EncoderClient]


def play(endpoint: str, shelf: MemoryShelf, scenario: Callable[[Desk], Awaitable[None]]) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            service = CentroidService(shelf, client, client)
            await scenario((RetrievalRequestRouter(client, service), service, client))

    asyncio.run(talk())


def expected(
    encoder: SentenceEncoder, shelf: MemoryShelf, text: str, names: Sequence[str], k: int
) -> Any:
    """Softmax at 0.1 of each adapter's best cosine among the k best of all."""
    e = encoder.encode([text])[0]
    found = [(float(x @ e), j) for j, n in enumerate(names) for x in encoder.encode(shelf.held[n])]
    best = np.full(len(names), -np.inf)
    for cosine, j in sorted(found, reverse=True)[:k]:
        best[j] = max(best[j], cosine)
    return softmax(best / 0.1)


def test_weights_follow_the_equation_and_each_text_is_embedded_once(
    endpoint: str, encoder_dir: Path
) -> None:
    encoder, shelf = SentenceEncoder(encoder_dir), MemoryShelf(TEXTS)
    rows = []

    async def scenario(desk: Desk) -> None:
        router, service, _ = desk
        for text, names, k in (("2 + 2", NAMES, 2), ("def g():", NAMES[::-1], 16)):
            await service.ensure(map(shelf.routable, names))
            weights = await router.route(text, names, {"k": k})
            assert weights == pytest.approx(expected(encoder, shelf, text, names, k), abs=1e-5)
            rows.append(weights)
        again = await router.route("def g():", NAMES[::-1], {"k": 16})
        assert again == rows[1]  # to the last bit

    play(endpoint, shelf, scenario)
    assert rows[0][::-1] != rows[1]  # negative control
    assert 0.0 in rows[0]
    assert sorted(shelf.read) == sorted(NAMES)


def test_the_base_answers_below_the_threshold(endpoint: str) -> None:
    shelf = MemoryShelf(TEXTS)

    async def scenario(desk: Desk) -> None:
        router, service, _ = desk
        await service.ensure(map(shelf.routable, NAMES))
        exact = await router.route("return x", NAMES, {"threshold": 0.999})
        other = await router.route("zzzz !!!! 77", NAMES, {"threshold": 0.999})
        assert sum(exact) == pytest.approx(1)
        assert other == (0.0, 0.0, 0.0)

    play(endpoint, shelf, scenario)


def test_other_texts_bring_other_neighbours(endpoint: str) -> None:
    shelf = MemoryShelf(TEXTS)

    async def scenario(desk: Desk) -> None:
        router, service, _ = desk
        await service.ensure(map(shelf.routable, NAMES))
        before = await router.route("so it goes", NAMES, {"k": 1})
        shelf.held[NAMES[0]] = ("so it goes",)
        await service.ensure(map(shelf.routable, NAMES))
        assert await router.route("so it goes", NAMES, {"k": 1}) == (1.0, 0.0, 0.0) != before

    play(endpoint, shelf, scenario)


def test_examples_that_were_never_kept_are_computed(endpoint: str) -> None:
    """A store whose centroids are older than examples."""
    shelf = MemoryShelf(TEXTS)

    async def scenario(desk: Desk) -> None:
        router, service, client = desk
        await service.ensure(map(shelf.routable, NAMES))
        whole = await router.route("fox", NAMES, {})
        await client.put_examples({})
        shelf.held = {digest: (*texts, "more") for digest, texts in shelf.held.items()}
        await service.ensure(map(shelf.routable, NAMES))
        shelf.kept = {key: (made, None) for key, (made, _) in shelf.kept.items()}
        found = await router.route("fox", NAMES, {})
        assert found != whole
        assert all(examples is not None for _, examples in shelf.kept.values())

    play(endpoint, shelf, scenario)
    assert len(shelf.read) == 9


@pytest.mark.slow
def test_a_restarted_worker_is_filled_by_what_is_asked(
    worker: EncoderProcess, endpoint: str
) -> None:
    shelf = MemoryShelf(TEXTS)

    async def scenario(desk: Desk) -> None:
        router, service, client = desk
        await service.ensure(map(shelf.routable, NAMES))
        before = await router.route("fox", NAMES, {})
        await asyncio.to_thread(worker.restart)
        while client.connections < 2:
            await asyncio.sleep(0)
        assert await router.route("fox", NAMES, {}) == before

    play(endpoint, shelf, scenario)
    assert sorted(shelf.read) == sorted(NAMES)


@pytest.mark.parametrize(
    ("names", "params", "said"),
    [
        (NAMES, {"neighbours": 3}, "takes no parameter 'neighbours'"),
        (NAMES, {"k": 0}, "k = 0"),
        (("x",) * (MAX_SETS + 1), {}, "4097 are too many .* 4096 at most"),
    ],
)
def test_what_cannot_be_retrieved_is_refused(
    endpoint: str, names: Sequence[str], params: dict[str, Any], said: str
) -> None:
    async def scenario(desk: Desk) -> None:
        with pytest.raises(RouterInputError, match=said):
            await desk[0].route("x", names, params)

    play(endpoint, MemoryShelf(TEXTS), scenario)


class OnePlace:
    """The worker's logic in this process, with room for the examples of one adapter."""

    def __init__(self, directory: Path) -> None:
        self.encoder = SentenceEncoder(directory)
        self.service = EncoderService(self.encoder, str, max_example_sets=1)
        self.asked = 0

    def texts_of(self, digests: Sequence[str]) -> tuple[str, ...]:
        return tuple(digests)

    async def put_examples(self, digests: Sequence[str]) -> None:
        rows = {digest: m.pack_vector(self.encoder.encode([digest])) for digest in digests}
        assert self._ask(m.PutExamples(1, rows)) == m.Done(1)

    async def retrieve(
        self, text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> m.Retrieved:
        self.asked += 1
        reply = self._ask(m.Retrieve(1, text, tuple(candidates), dict(params)))
        assert isinstance(reply, m.Retrieved)
        return reply

    def _ask(self, ask: m.Ask) -> m.Reply:
        self.service.receive(b"here", m.encode(ask))
        ((_, reply),) = self.service.work()
        return reply


def test_without_room_for_all_candidates_there_is_an_end(encoder_dir: Path) -> None:
    desk = OnePlace(encoder_dir)
    router = RetrievalRequestRouter(desk, desk)
    assert asyncio.run(router.route("x", ("a",), {})) == (1.0,)
    assert asyncio.run(router.route("x", ("b",), {})) == (1.0,)  # a gives way
    assert desk.asked == 4
    with pytest.raises(RouterUnavailableError, match="no room"):
        asyncio.run(router.route("x", ("a", "b"), {}))
