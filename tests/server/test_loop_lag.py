"""Whatever is sent, the event loop does nothing in one piece that others would notice."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jiter
import pytest
from pydantic import BaseModel
from sqlalchemy import insert, select

from adapters_store.metadata import Database
from adapters_store.metadata.schema import ADAPTERS, BLOBS, TAGS, VERSIONS
from adapters_store.types import AdapterManifest
from router_engine.routers.registry import RouterRegistry
from server.schemas.base import Body
from tests.server.lag import watched
from tests.server.lag_inputs import BOTH, DISTINCT, INPUTS, NAMES, ONE, json_post
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

TRIES = 3  # what is too much is so each time; one may have met a collection of garbage


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with thousands of names, on the event loop that can be watched."""
    root = tmp_path_factory.mktemp("crowded")
    settings = tiny_settings(root, metrics_adapters=NAMES, max_candidates=len(DISTINCT))
    with serving(settings, loop="asyncio") as live:
        assert live.publish(make_lora_folder(root / "a", rank=1, seed=1), "a0").status_code == 201
        texts = b"\n".join([json.dumps("word \n" * 5400).encode()] * 430)
        set_texts = live.client.put("/admin/adapters/a0/texts", files={"texts": ("t.jsonl", texts)})
        assert set_texts.status_code == 200, set_texts.text
        digest = live.client.get("/admin/adapters/a0").json()["adapters"][0]["digest"]
        wide = live.publish(make_lora_folder(root / "b", rank=2, seed=2), "b0")
        assert wide.status_code == 201
        _add_names(settings.store_dir / "adapters.db", digest)
        _add_manifests(settings.store_dir / "adapters.db", digest, wide.json()["digest"])
        for index in range(NAMES):
            live.container.metrics.add_weights({f"a{index}": 1.0})
        yield live


def _add_manifests(file: Path, digest: str, last: str) -> None:
    """As many manifests as a mixture may name, all like one but for the last; without weights."""
    names = [one["name"] for one in DISTINCT]
    digests = [f"sha256:{index:064x}" for index in range(len(names))]
    database = Database(file)
    with database.write() as connection:
        rows = connection.execute(select(BLOBS.c.digest, BLOBS.c.manifest))
        texts = {row.digest: row.manifest for row in rows}
        like = dict.fromkeys(digests[:-1], texts[digest]) | {digests[-1]: texts[last]}
        blob = insert(BLOBS).values(size_bytes=1, num_texts=0)
        connection.execute(blob, [{"digest": one, "manifest": like[one]} for one in digests])
        connection.execute(insert(ADAPTERS).values(last_version=1), [{"name": n} for n in names])
        version = insert(VERSIONS).values(version=1, created_at=0.0)
        named = zip(names, digests, strict=True)
        connection.execute(version, [{"name": n, "digest": one} for n, one in named])
        connection.execute(insert(TAGS).values(version=1, tag="d"), [{"name": n} for n in names])
    database.close()


def _add_names(file: Path, digest: str) -> None:
    names = [{"name": f"a{index}"} for index in range(1, NAMES)]
    database = Database(file)
    with database.write() as connection:
        connection.execute(insert(ADAPTERS).values(last_version=1), names)
        of_one = insert(VERSIONS).values(version=1, digest=digest, created_at=0.0)
        connection.execute(of_one, names)
        connection.execute(insert(TAGS).values(version=1, tag="t"), names)
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(INPUTS))
def test_nothing_holds_up_the_event_loop(
    crowded: Live, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for _ in range(TRIES):
        with watched(crowded, monkeypatch) as watch:
            answer = INPUTS[name](crowded.client)
        assert answer.status_code < 500, answer.text
        found.append(watch.longest())
        if found[-1][0] < 1:
            return
    raise AssertionError(found)


@pytest.mark.slow
def test_many_who_wait_hold_up_nobody(crowded: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 4}}
    with (
        httpx.Client(base_url=crowded.url, timeout=None, limits=httpx.Limits()) as client,
        ThreadPoolExecutor(64) as pool,
    ):
        for _ in range(TRIES):
            with watched(crowded, monkeypatch) as watch:
                asked = [pool.submit(client.post, "/generate", json=body) for _ in range(256)]
                assert {one.result().status_code for one in asked} <= {200, 429}
            if watch.longest()[0] < 1:
                return
    raise AssertionError(watch.longest())


PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("/generate", {"inputs": "a", "parameters": ONE | {"adapter_id": "one"}}),
    "several": ("/generate", {"inputs": "a", "parameters": ONE, "mixture": {"adapters": BOTH}}),
    "linear": (
        "/score",
        {
            "inputs": "a",
            "completions": ["b"],
            "mixture": {"adapters": BOTH, "combination": "linear"},
        },
    ),
    "a model": ("/v1/completions", {"model": "other", "prompt": "a", "max_tokens": 1}),
    "merged": ("PUT /admin/merged", {"adapters": BOTH}),
    **{
        f"routed by {level}": (
            "/generate",
            {
                "inputs": "a",
                "parameters": ONE,
                "mixture": {
                    "router": {"name": name, "level": level, "candidates": ["one", "other"]}
                },
            },
        )
        for level, name in (
            ("request", "similarity"),
            ("token", "similarity"),
            ("token", "hidden_mean"),
            ("layer", "arrow"),
        )
    },
}


def test_manifests_are_read_beside_the_event_loop(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def ident() -> int:
        return threading.get_ident()

    loop = live.run(ident())
    readers: list[tuple[int, str]] = []

    def watched_property(name: str, own: property) -> property:
        def read(manifest: AdapterManifest) -> Any:
            readers.append((threading.get_ident(), name))
            assert own.fget is not None
            return own.fget(manifest)

        return property(read)

    for name, own in list(vars(AdapterManifest).items()):
        if isinstance(own, property):
            monkeypatch.setattr(AdapterManifest, name, watched_property(name, own))
    # Its own adapters: what is known already is not read again.
    for index, name in enumerate(("one", "other")):
        folder = make_lora_folder(tmp_path / name, rank=1, seed=90 + index)
        texts = {"texts": ("t.jsonl", f'"{name} text"\n'.encode())}
        assert live.publish(folder, name).status_code == 201
        assert live.client.put(f"/admin/adapters/{name}/texts", files=texts).status_code == 200
    for name, (path, body) in PLANNED.items():
        answer = json_post(path, body)(live.client)
        assert answer.status_code == 200, (name, answer.text)
    assert live.client.delete("/admin/merged").status_code == 200
    for name in ("one", "other"):
        assert live.client.delete(f"/admin/adapters/{name}").status_code == 200
    assert readers
    assert not [name for thread, name in readers if thread == loop]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection of garbage makes a unit longer: it could take as long as what is to be seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_a_watch_sees_what_takes_long(bare: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bare.container.settings, loop="asyncio") as live:

        async def long() -> None:
            json.dumps([{"n": i} for i in range(300_000)])

        with watched(live, monkeypatch) as watch:
            live.run(long())
        assert watch.longest()[0] > 1


@pytest.mark.usefixtures("uncollected")
def test_a_watch_sees_what_other_threads_are_kept_from(
    bare: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(bare.container.settings, loop="asyncio") as live:
        long = json.dumps([{"n": i} for i in range(600_000)]).encode()

        async def elsewhere() -> None:
            await live.container.bodies.reading.run(lambda: jiter.from_json(long))

        with watched(live, monkeypatch) as watch:
            live.run(elsewhere())
        assert watch.longest()[0] > 1


def test_every_list_of_a_body_is_refused_at_its_first_bad_item() -> None:
    found = list(_lists())
    assert len(found) >= 10
    assert not [where for where, schema in found if not schema.get("fail_fast")]


def _lists() -> Iterator[tuple[str, dict[str, Any]]]:
    registry = RouterRegistry.discover()
    waiting: list[type[BaseModel]] = [registry.get(name).params for name in registry.names]
    waiting += Body.__subclasses__()
    while waiting:
        body = waiting.pop()
        waiting += body.__subclasses__()
        if body.__module__.startswith(("server.", "router_engine.")):
            for schema in _within(body.__pydantic_core_schema__):
                yield body.__name__, schema


def _within(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple", "set", "frozenset", "dict"):
            yield schema
        for value in schema.values():
            yield from _within(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _within(value)
