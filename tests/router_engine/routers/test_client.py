"""The asyncio client against a real worker process: answers, concurrency, death, timeouts."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from router_engine.errors import RouterError
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.sentence import SentenceEncoder
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.scoring import SimilarityParams, cosine_scores, weights_from_scores
from router_engine.routers.similarity import SimilarityRequestRouter
from tests.router_engine.routers.conftest import Centroids
from tests.support.waiting import HANG_SECONDS

TEXTS = [f"text number {i}" for i in range(20)]
CANDIDATES = ("a", "b", "c")


def test_info_and_embeddings_are_those_of_the_encoder(endpoint: str, encoder_dir: Path) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            info = await client.info()
            assert (info.digest, info.dimension) == (encoder.digest, 32)
            embeddings = await client.embed(TEXTS)
            np.testing.assert_allclose(embeddings, encoder.encode(TEXTS), atol=1e-6)
            long = "a b c d " * 40
            head, tail = [await client.embed([long], window=w) for w in ("head", "tail")]
            assert not np.allclose(head, tail)
            assert (await client.embed([])).shape == (0, 32)

    encoder = SentenceEncoder(encoder_dir)
    asyncio.run(talk())


def test_a_request_is_routed_by_its_prompt(
    endpoint: str, encoder_dir: Path, centroids: Centroids
) -> None:
    async def talk() -> tuple[float, ...]:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            await client.put_centroids(centroids)
            router = SimilarityRequestRouter(client)
            with pytest.raises(RouterInputError, match="'ev'"):
                await router.route("hello", CANDIDATES, {"ev": 1})
            with pytest.raises(RouterError, match="no centroid of nobody"):
                await router.route("hello", ("a", "nobody"), {})
            return await router.route("hello", CANDIDATES, {"temperature": 0.5})

    embedding = SentenceEncoder(encoder_dir).encode(["hello"])[0]
    scores = cosine_scores(embedding, [centroids[name] for name in CANDIDATES])
    params = SimilarityParams(temperature=0.5)
    assert asyncio.run(talk()) == pytest.approx(weights_from_scores(scores, params), abs=1e-6)


async def _until_connected(client: EncoderClient) -> None:
    """However long it takes: the client itself would give up."""
    while not client.is_connected:
        await asyncio.sleep(0)


def test_two_clients_ask_at_once(endpoint: str, centroids: Centroids) -> None:
    async def talk() -> None:
        async with (
            EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as one,
            EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as two,
        ):
            await one.put_centroids(centroids)
            routed = [c.route(text, CANDIDATES, {}) for text in TEXTS for c in (one, two)]
            embedded = [one.embed(TEXTS), two.embed(TEXTS[:9])]
            weights = await asyncio.gather(*routed)
            assert [w.shape for w in await asyncio.gather(*embedded)] == [(20, 32), (9, 32)]
            assert weights[0::2] == weights[1::2]
            assert len(set(weights)) == len(TEXTS)

    asyncio.run(talk())


def test_a_killed_worker_fails_what_it_held_and_comes_back(
    worker: EncoderProcess, endpoint: str, centroids: Centroids
) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
            await client.put_centroids(centroids)
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)  # so that the ask below cannot be answered before
            held = asyncio.create_task(client.route("hello", CANDIDATES, {}))
            while not client.waiting:
                await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(RouterUnavailableError, match="died"):
                await held
            assert await asyncio.to_thread(worker.wait) == -signal.SIGKILL
            assert client.connections == 1
            await asyncio.to_thread(worker.restart)
            assert await client.connected() == 2
            with pytest.raises(RouterError, match="no centroid of a, b, c"):
                await client.route("hello", CANDIDATES, {})
            await client.put_centroids(centroids)
            assert len(await client.route("hello", CANDIDATES, {})) == 3

    asyncio.run(talk())


def test_a_worker_that_is_away_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    async def talk() -> None:
        async with EncoderClient(f"ipc://{tmp_path / 'nobody'}", connect_seconds=0.05) as client:
            with pytest.raises(RouterUnavailableError, match="is away"):
                await client.info()

    asyncio.run(talk())


def test_a_silent_worker_is_given_up(worker: EncoderProcess, endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, answer_seconds=0.05) as client:
            await _until_connected(client)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                with pytest.raises(RouterUnavailableError, match=r"no answer in 0\.05 s"):
                    await client.info()
            finally:
                os.kill(worker.pid, signal.SIGCONT)

    asyncio.run(talk())


def test_too_many_asks_are_refused(endpoint: str) -> None:
    async def talk() -> None:
        async with EncoderClient(endpoint, max_waiting=1) as client:
            await _until_connected(client)
            results = await asyncio.gather(client.info(), client.info(), return_exceptions=True)
            assert [type(result) for result in results][1] is RouterUnavailableError

    asyncio.run(talk())


def test_a_closed_client_refuses(endpoint: str) -> None:
    async def talk() -> None:
        client = EncoderClient(endpoint, connect_seconds=0.05)
        await client.start()
        await _until_connected(client)
        await client.info()
        await client.close()
        with pytest.raises(RouterUnavailableError):
            await client.info()

    asyncio.run(talk())


def test_the_environment_must_tame_openmp(encoder_config: EncoderConfig) -> None:
    with pytest.raises(ValueError, match="must set OMP_WAIT_POLICY"):
        EncoderConfig(
            encoder_config.encoder_dir,
            encoder_config.tokenizer_dir,
            "ipc:///x",
            {"OMP_NUM_THREADS": "1"},
        )
