"""Centroids: computed once for these texts and this encoder, stored, put with each worker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from router_engine.routers.centroids import CentroidService, Routable, centroid
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder
from router_engine.routers.errors import RouterInputError
from router_engine.routers.knn import MAX_EXAMPLES
from tests.router_engine.routers.shelf import MemoryShelf
from tests.support.waiting import HANG_SECONDS

MATH, CODE, BARE = "sha256:math", "sha256:code", "sha256:bare"
TEXTS = {
    MATH: ["3 + 4 = 7", "what is 9 * 9?", "a b c d " * 40],
    CODE: ["def f(x):", "return x"],
    BARE: [],
}
LABELS = {MATH: "math@1", CODE: "code@2", BARE: "bare@1"}
Scenario = Callable[[CentroidService, EncoderClient], Awaitable[None]]


def routables(shelf: MemoryShelf, digests: Sequence[str] = (MATH, CODE)) -> list[Routable]:
    return [shelf.routable(digest, LABELS[digest]) for digest in digests]


def play(endpoint: str, shelf: MemoryShelf, scenario: Scenario) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            await scenario(CentroidService(shelf, client, client), client)

    asyncio.run(talk())


def test_a_centroid_is_the_plain_mean() -> None:
    assert centroid([[1.0, 0.0], [0.0, 3.0]]).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("embeddings", [np.zeros((0, 4)), [[np.nan, 1.0]], [1.0, 2.0]])
def test_a_centroid_of_nothing_is_refused(embeddings: object) -> None:
    with pytest.raises(RouterInputError, match="one or more finite embeddings"):
        centroid(np.asarray(embeddings))


def test_missing_ones_are_computed_stored_and_put(endpoint: str, encoder_dir: Path) -> None:
    async def scenario(service: CentroidService, client: EncoderClient) -> None:
        await service.ensure(routables(shelf))
        assert len(await client.route("3 + 4", [MATH, CODE], {})) == 2

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    encoder = SentenceEncoder(encoder_dir)
    for one in routables(shelf):
        embeddings = encoder.encode(TEXTS[one.digest], "head")
        made, examples = shelf.kept[one.digest, encoder.digest]
        assert made.texts == one.texts
        assert made.vector == pytest.approx(embeddings.mean(axis=0), abs=1e-6)
        assert examples == pytest.approx(embeddings, abs=1e-6)


def test_examples_are_taken_evenly_over_many_texts(endpoint: str, encoder_dir: Path) -> None:
    texts = [f"number {i}" for i in range(100)]

    async def scenario(service: CentroidService, _: EncoderClient) -> None:
        await service.ensure([shelf.routable(MATH)])

    shelf = MemoryShelf({MATH: texts})
    play(endpoint, shelf, scenario)
    encoder = SentenceEncoder(encoder_dir)
    _, examples = shelf.kept[MATH, encoder.digest]
    chosen = [texts[i * 100 // 64] for i in range(64)]
    assert examples == pytest.approx(encoder.encode(chosen, "head"), abs=1e-6)
    assert len(chosen) == MAX_EXAMPLES


def test_each_is_computed_once(endpoint: str) -> None:
    async def scenario(service: CentroidService, client: EncoderClient) -> None:
        await asyncio.gather(*(service.ensure(routables(shelf)) for _ in range(5)))
        await CentroidService(shelf, client, client).ensure(routables(shelf))

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    assert sorted(shelf.read) == sorted([MATH, CODE])


def test_other_texts_make_another_centroid(endpoint: str) -> None:
    async def scenario(service: CentroidService, client: EncoderClient) -> None:
        await service.ensure(routables(shelf))
        before = await client.route("def f(x):", [MATH, CODE], {})
        assert await client.route("def f(x):", [MATH, CODE], {}) == before  # negative control
        shelf.held[MATH] = ("def f(x):",)
        assert await service.ready(routables(shelf, [MATH])) == {}  # pending
        await service.ensure(routables(shelf))
        after = await client.route("def f(x):", [MATH, CODE], {})
        assert after[0] > before[0]
        assert set(await service.ready(routables(shelf, [MATH]))) == {MATH}

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    assert sorted(shelf.read) == sorted([MATH, MATH, CODE])


@pytest.mark.slow
def test_another_encoder_makes_another_centroid(
    endpoint: str, encoder_config: EncoderConfig, tmp_path: Path
) -> None:
    async def scenario(service: CentroidService, _: EncoderClient) -> None:
        await service.ensure(routables(shelf, [MATH]))

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    other = dataclasses.replace(
        encoder_config,
        encoder_dir=save_tiny_encoder(tmp_path / "other", seed=1),
        endpoint=f"ipc://{tmp_path / 'other.sock'}",
    )
    process = EncoderProcess(other)
    process.start()
    try:
        play(other.endpoint, shelf, scenario)
        play(other.endpoint, shelf, scenario)  # negative control: it is there now
    finally:
        process.stop()
    assert shelf.read == [MATH, MATH]
    one, two = (made.vector for made, _ in shelf.kept.values())
    assert not np.allclose(one, two)


def test_an_adapter_without_texts_is_named(endpoint: str) -> None:
    async def scenario(service: CentroidService, _: EncoderClient) -> None:
        with pytest.raises(RouterInputError, match=r"^bare@1 cannot be routed .*`texts`"):
            await service.ensure(routables(shelf, [MATH, CODE, BARE]))

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)


def test_what_is_ready_is_known_without_computing(endpoint: str) -> None:
    async def scenario(service: CentroidService, client: EncoderClient) -> None:
        await client.connected()
        assert await service.ready(routables(shelf, [MATH, BARE])) == {}
        assert shelf.read == []
        await service.ensure(routables(shelf, [MATH]))
        fresh = CentroidService(shelf, client, client)
        found = await fresh.ready(routables(shelf, [MATH, CODE, BARE]))
        assert set(found) == {MATH}
        assert found[MATH].tolist() == next(iter(shelf.kept.values()))[0].vector.tolist()

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)


def test_without_a_worker_nothing_is_ready_and_nobody_waits(tmp_path: Path) -> None:
    async def scenario(service: CentroidService, _: EncoderClient) -> None:
        assert await service.ready(routables(MemoryShelf(TEXTS))) == {}

    play(f"ipc://{tmp_path / 'nobody'}", MemoryShelf(TEXTS), scenario)


@pytest.mark.slow
def test_a_restarted_worker_gets_them_again(worker: EncoderProcess, endpoint: str) -> None:
    async def scenario(service: CentroidService, client: EncoderClient) -> None:
        await service.ensure(routables(shelf))
        await asyncio.to_thread(worker.restart)
        while client.connections < 2:
            await asyncio.sleep(0)
        await service.refresh()
        assert len(await client.route("3 + 4", [MATH, CODE], {})) == 2

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    assert sorted(shelf.read) == sorted([MATH, CODE])


def test_a_forgotten_one_is_brought_from_the_store(endpoint: str) -> None:
    async def scenario(service: CentroidService, _: EncoderClient) -> None:
        await service.ensure(routables(shelf))
        service.forget(MATH)
        await service.ensure(routables(shelf))

    shelf = MemoryShelf(TEXTS)
    play(endpoint, shelf, scenario)
    assert sorted(shelf.read) == sorted([MATH, CODE])
