"""Admin work that waits holds up nothing that a request needs on its way in."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_store.errors import StoreUnavailableError
from server.http.access import MOST_ADMINS
from server.threads import Threads
from tests.server.live import Live, serving, tiny_settings
from tests.support.waiting import HANG_SECONDS, wait_for

ADMIN = "an admin key of a test"
SHORT = 1.0  # seconds of what would hang for ever
MORE = 6  # than may be under way
GENERATE = {"inputs": "a", "parameters": {"max_new_tokens": 1, "adapter_id": "math"}}


@pytest.fixture
def locked(tmp_path: Path, folders: dict[str, Path]) -> Iterator[tuple[Live, sqlite3.Connection]]:
    """A server that asks for keys, whose database another writer has locked."""
    settings = tiny_settings(
        tmp_path, admin_key=ADMIN, database_patience=HANG_SECONDS, adapters=folders["math"].parent
    )
    with serving(settings) as live:
        file = settings.store_dir / "adapters.db"
        with closing(sqlite3.connect(file, check_same_thread=False)) as writer:
            writer.isolation_level = None
            writer.execute("BEGIN IMMEDIATE")
            yield live, writer


def test_requests_go_on_while_the_database_is_locked(
    locked: tuple[Live, sqlite3.Connection],
) -> None:
    live, writer = locked
    _, secret = _key(live, writer)
    limits = httpx.Limits(max_connections=2 * MOST_ADMINS)
    admin = {"authorization": f"Bearer {ADMIN}"}
    with (
        httpx.Client(base_url=live.url, timeout=HANG_SECONDS, limits=limits) as client,
        ThreadPoolExecutor(MOST_ADMINS + MORE) as pool,
    ):

        def move(number: int) -> httpx.Response:
            path = f"/admin/adapters/math/aliases/a{number}"
            return client.put(path, json={"version": 1}, headers=admin)

        moves = [pool.submit(move, number) for number in range(MOST_ADMINS + MORE)]
        wait_for(lambda: sum(future.done() for future in moves) == MORE)
        refused = [future.result() for future in moves if future.done()]
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.json()["error_type"] for answer in refused} == {"busy"}
        assert all(answer.headers["retry-after"] for answer in refused)

        mine = {"authorization": f"Bearer {secret}"}
        for path, body in _bodies().items():
            answer = client.post(path, json=body, headers=mine)
            assert answer.status_code == 200, answer.text
        assert client.get("/v1/models", headers=mine).status_code == 200
        unknown = client.post("/generate", json=GENERATE, headers={"x-api-key": "no"})
        assert unknown.status_code == 401

        writer.execute("ROLLBACK")
        statuses = sorted(future.result().status_code for future in moves)
        assert statuses == [200] * MOST_ADMINS + [503] * MORE


def _bodies() -> dict[str, dict[str, Any]]:
    return {
        "/generate": GENERATE,
        "/score": {"inputs": "a", "completions": ["b"], "adapter": "math"},
        "/v1/completions": {"model": "math", "prompt": "a" * 500, "max_tokens": 1},
        "/v1/chat/completions": {
            "model": "math",
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
        },
    }


def _key(live: Live, writer: sqlite3.Connection) -> tuple[Any, str]:
    writer.execute("ROLLBACK")
    made = live.container.store.create_key("me", "use")
    writer.execute("BEGIN IMMEDIATE")
    return made


def test_a_lock_that_stays_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    settings = tiny_settings(tmp_path, database_patience=SHORT, adapters=folders["math"].parent)
    with serving(settings) as live:
        file = settings.store_dir / "adapters.db"
        with closing(sqlite3.connect(file)) as writer:
            writer.isolation_level = None
            writer.execute("BEGIN IMMEDIATE")
            texts = {"texts": ("texts.jsonl", b'"a text"\n')}
            for answer in (
                live.client.put("/admin/adapters/math/aliases/a", json={"version": 1}),
                live.client.delete("/admin/adapters/math@1"),
                live.client.put("/admin/adapters/math/texts", files=texts),
                live.publish(folders["code"], "other"),
            ):
                assert answer.status_code == 503, answer.text
                assert answer.json()["error_type"] == "store_unavailable"
                assert answer.headers["retry-after"]
            assert live.client.post("/generate", json=GENERATE).status_code == 200
            assert live.client.get("/admin/adapters").status_code == 200
        assert live.client.delete("/admin/adapters/math@1").status_code == 200


def test_long_bodies_hold_up_neither_figures_nor_answers(bare: Live) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)
    reading = bare.container.bodies.reading

    def long_body() -> None:
        begun.release()
        gate.wait()

    async def send() -> None:
        sent.extend(asyncio.ensure_future(reading.run(long_body)) for _ in range(MOST_ADMINS))

    async def ended() -> None:
        await asyncio.gather(*sent)

    sent: list[asyncio.Future[None]] = []
    bare.run(send())
    try:
        begun.acquire()
        assert bare.client.get("/metrics").status_code == 200
        assert bare.client.get("/admin/adapters").status_code == 200
        parameters = {"max_new_tokens": 200, "ignore_eos_token": True, "details": True}
        answer = bare.answer("a", parameters=parameters)
        assert len(answer["details"]["tokens"]) == 200
    finally:
        gate.set()
    bare.run(ended())


@pytest.mark.parametrize("path", ["/v1/completions", "/score"])
def test_the_first_text_that_is_too_long_refuses_all(
    bare: Live, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenization = bare.container.generation.tokenization
    encode, read = tokenization.encode, []

    def watched(text: str, **options: Any) -> tuple[int, ...]:
        read.append(text[:1])
        return encode(text, **options)

    monkeypatch.setattr(tokenization, "encode", watched)
    # Not by its characters alone: it is read before it is known.
    texts = ["b", "b", "a b " * (bare.container.generation.info.max_model_len // 2), *["c"] * 200]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "tiny-random", "prompt": texts},
        "/score": {"inputs": "b", "completions": texts[:64]},
    }
    answer = bare.client.post(path, json=bodies[path])
    assert answer.status_code == 422, answer.text
    assert "too long" in answer.text
    assert set(read) == {"a", "b"}


def test_a_database_that_hangs_is_not_waited_for_without_end(bare: Live) -> None:
    gate = threading.Event()

    async def ask() -> None:
        threads = Threads("hanging", 1, SHORT)
        try:
            with pytest.raises(StoreUnavailableError, match=f"in {SHORT:g} s"):
                await threads.run(gate.wait)
        finally:
            gate.set()
            threads.close()

    bare.run(ask())
