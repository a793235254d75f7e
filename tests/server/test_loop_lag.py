"""Whatever is sent, the event loop does nothing in one piece that others would notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
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
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

TRIES = 3  # what is too much is so each time; one may have met a collection of garbage
NAMES = 3000
BIG = "word " * 1_600_000  # 8 MB
MANY = 400_000
WAYS = 'multipart/form-data; boundary="b"'
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"
FULL = {"max_new_tokens": 600, "ignore_eos_token": True, "details": True, "top_n_tokens": 20}
OPENAI: dict[str, Any] = {"model": "tiny-random", "max_tokens": 400, "ignore_eos": True}
TURN = {"role": "user", "content": "a"}
CHAT = OPENAI | {"messages": [TURN]}
ONE = {"max_new_tokens": 1}
BOTH = [{"name": "one"}, {"name": "other"}]
PART = {"type": "text", "text": "a"}
LOGPROBS = {"logprobs": True, "top_logprobs": 20}

# Of as many manifests; the last has another rank, so that these are refused.
DISTINCT = [{"name": f"d{index}"} for index in range(1024)]
MIXED = {"inputs": "a", "mixture": {"adapters": DISTINCT}}
LINEAR = {"mixture": {"adapters": DISTINCT, "combination": "linear"}}

JSON_BODIES: dict[str, tuple[str, Any]] = {
    "a long prompt": ("/generate", {"inputs": BIG}),
    "its end": ("/generate", {"inputs": BIG, "parameters": ONE | {"truncate": 8}}),
    "wide characters": (
        "/generate",
        {"inputs": "é€𝄞" * 600_000, "parameters": ONE | {"truncate": 8}},
    ),
    "many prompts": ("/v1/completions", OPENAI | {"prompt": ["a"] * 20_000}),
    "more prompts": ("/v1/completions", OPENAI | {"prompt": ["a"] * MANY}),
    "ids": ("/v1/completions", OPENAI | {"prompt": [5] * MANY}),
    "large ids": ("/v1/completions", OPENAI | {"prompt": [5] * MANY + [2**62]}),
    "no ids": ("/v1/completions", OPENAI | {"prompt": [1.5] * MANY}),
    "lists of ids": ("/v1/completions", OPENAI | {"prompt": [[1, 2]] * 40_000}),
    "mixed lists": ("/v1/completions", OPENAI | {"prompt": [[1, "a"]] * 40_000}),
    "messages": ("/v1/chat/completions", CHAT | {"messages": [TURN] * 40_000}),
    "parts": (
        "/v1/chat/completions",
        CHAT
        | {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 40_000}]},
    ),
    "a long model": ("/v1/completions", OPENAI | {"model": BIG, "prompt": "a"}),
    "a long user": ("/v1/completions", OPENAI | {"prompt": "a", "user": BIG}),
    "metadata": (
        "/v1/completions",
        OPENAI | {"prompt": "a", "metadata": {f"k{i}": 1 for i in range(MANY)}},
    ),
    "a long name": ("/generate", {"inputs": "a", "mixture": {"adapters": [{"name": BIG}]}}),
    "a long adapter": ("/generate", {"inputs": "a", "parameters": {"adapter_id": BIG}}),
    "a long field": ("/generate", {"inputs": "a", "parameters": {BIG: 1}}),
    "a long value": ("/generate", {"inputs": "a", "parameters": {"temperature": BIG}}),
    "many fields": ("/generate", {"inputs": "a", **{f"k{i}": 1 for i in range(MANY)}}),
    "stops": ("/generate", {"inputs": "a", "parameters": {"stop": [1] * MANY}}),
    "adapters": (
        "/generate",
        {"inputs": "a", "mixture": {"adapters": [{"name": f"x{i}"} for i in range(45_000)]}},
    ),
    "floats": ("/v1/completions", OPENAI | {"prompt": [0.123456789] * 490_000}),
    "whole prompts of ids": ("/v1/completions", OPENAI | {"prompt": [[49151] * 2000] * 200}),
    "texts of prompts": ("/v1/completions", OPENAI | {"prompt": ["[{,\n" * 2000] * 200}),
    "parts of all messages": (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": [PART] * 4000}] * 11},
    ),
    "empty messages": (
        "/v1/chat/completions",
        CHAT | {"messages": [TURN | {"content": ""}] * 4096},
    ),
    "empty parts": (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": [PART | {"text": ""}] * 4096}]},
    ),
    "unlike stops": (
        "/v1/completions",
        OPENAI | {"prompt": "a", "n": 16, "stop": [chr(97 + i) + "\2" * 1023 for i in range(16)]},
    ),
    "like stops": (
        "/v1/completions",
        OPENAI | {"prompt": "a", "n": 16, "stop": ["\2" * 1024] * 16},
    ),
    "unread keys": (
        "/v1/completions",
        OPENAI | {"prompt": "a", "logit_bias": {str(i): 1 for i in range(60_000)}},
    ),
    "score": ("/score", {"inputs": "a", "completions": [BIG[:100_000]] * 64}),
    "many scores": ("/score", {"inputs": "a", "completions": ["b" * 800] * 16}),
    "details": ("/generate", {"inputs": "a", "parameters": FULL}),
    "a stream": ("/generate_stream", {"inputs": "a", "parameters": FULL}),
    "chat logprobs": (
        "/v1/chat/completions",
        CHAT | {"n": 4, "logprobs": True, "top_logprobs": 20},
    ),
    "logprobs": ("/v1/completions", OPENAI | {"prompt": ["a"] * 4, "logprobs": 20}),
    "streams": (
        "/v1/completions",
        OPENAI | {"prompt": ["a"] * 4, "max_tokens": 200, "logprobs": 20, "stream": True},
    ),
    "many adapters": ("/generate", MIXED | {"parameters": {"max_new_tokens": 1}}),
    "many to merge": ("PUT /admin/merged", {"adapters": DISTINCT}),
    "adapters of several ranks": (
        "/score",
        {"inputs": "a", "completions": ["b"], **LINEAR},
    ),
    "as many as may wait": (
        "/v1/completions",
        OPENAI | {"prompt": ["a"] * 256, "max_tokens": 2},
    ),
}
_ROUTERS: dict[str, dict[str, Any]] = {
    "distinct candidates": {"candidates": [one["name"] for one in DISTINCT]},
    "a tag of many": {"candidates": {"tag": "d"}, "level": "layer", "name": "arrow"},
    "candidates": {"candidates": ["a"] * MANY},
    "no candidates": {"candidates": [1] * MANY},
    "a tag": {"candidates": {"tag": "t"}},
    "a parameter": {"candidates": ["a0"], "x": BIG},
    "parameters": {"candidates": ["a0"], **{f"k{i}": 1 for i in range(MANY)}},
    "a long router": {"candidates": ["a0"], "name": BIG},
    "a long parameter": {"candidates": ["a0"], BIG[:2_000_000]: 1},
    "long parameters": {"candidates": ["a0"], **{f"{i}{BIG[:100_000]}": 1 for i in range(60)}},
    **{
        f"given {name}": {"name": "given", "level": "token", "candidates": ["a0"], "weights": rows}
        for name, rows in {
            "texts": [["a"] * 60_000],
            "no rows": ["a"] * 60_000,
            "one row": [[1.5] * 490_000],
            "a bad end": [[1.5] * 60_000 + ["a"]],
            "as many as may be": [[1.5] * 65_536],
            "many rows": [[1.5]] * 16_000,
        }.items()
    },
}
for name, spec in _ROUTERS.items():
    router = {"name": "random", **spec}
    JSON_BODIES[name] = ("/generate", {"inputs": "a", "mixture": {"router": router}})


def _raw(content: bytes, kind: str, path: str) -> Callable[[httpx.Client], httpx.Response]:
    headers = {"content-type": kind}
    method, _, path = path.rpartition(" ")
    return lambda client: client.request(method or "POST", path, content=content, headers=headers)


def _json(path: str, body: Any) -> Callable[[httpx.Client], httpx.Response]:
    # Written when it is sent: megabytes of each, which most runs of the suite never need.
    return lambda client: _raw(
        json.dumps(body, ensure_ascii=False).encode(), "application/json", path
    )(client)


def _get(path: str) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.get(path)


def _upload(files: list[Any]) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post("/admin/adapters", data={"name": "x"}, files=files)


INPUTS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    **{name: _json(path, body) for name, (path, body) in JSON_BODIES.items()},
    "escapes": _raw(
        b'{"inputs": "' + rb"\u00e9" * 1_300_000 + b'"}', "application/json", "/generate"
    ),
    "digits": _raw(
        b'{"inputs": "' + b"123456789012345678 " * 420_000 + b'"}', "application/json", "/generate"
    ),
    "no end": _raw(b'{"inputs": "' + rb"\"" * 3_900_000, "application/json", "/generate"),
    "brackets": _raw(b"[" * 8_000_000, "application/json", "/generate"),
    "no JSON": _raw(b" " * 8_000_000, "application/json", "/generate"),
    "no UTF-8": _raw(b'{"inputs": "' + b"\xff" * 8_000_000, "application/json", "/generate"),
    "bad texts": _upload(
        [("files", ("a.json", b"{}")), ("texts", ("t.jsonl", b"not json\n" * 1_000_000))]
    ),
    "a large file": _upload([("files", ("adapter_model.safetensors", bytes(32 << 20)))]),
    "files": _upload([("files", (f"f{i}", b"x")) for i in range(990)]),
    "headers": _raw((b"--b\r\nX-A: " + b"v" * 60 + b"\r\n\r\n\r\n") * 900, WAYS, "/admin/adapters"),
    "lines": _raw(HEAD + b"\r\n-" * 3_000_000 + TAIL, WAYS, "/admin/adapters"),
    "metrics": _get("/metrics"),
    "the API": _get("/openapi.json"),
    "a page": _get("/docs"),
    "the listing": _get("/admin/adapters"),
    "the models": _get("/v1/models"),
    "one name": _get("/admin/adapters/a7"),
    "long texts": _get("/admin/adapters/a0/texts"),
    "merged": _get("/admin/merged"),
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with thousands of names, on the event loop that can be watched."""
    root = tmp_path_factory.mktemp("crowded")
    settings = tiny_settings(root, metrics_adapters=NAMES, max_candidates=len(DISTINCT))
    with serving(settings, loop="asyncio") as live:
        assert live.publish(make_lora_folder(root / "a", rank=1, seed=1), "a0").status_code == 201
        texts = b"\n".join([json.dumps("word \n" * 5400).encode()] * 1750)
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
        answer = _json(path, body)(live.client)
        assert answer.status_code == 200, (name, answer.text)
    assert live.client.delete("/admin/merged").status_code == 200
    for name in ("one", "other"):
        assert live.client.delete(f"/admin/adapters/{name}").status_code == 200
    assert readers
    assert not [name for thread, name in readers if thread == loop]


def test_a_watch_sees_what_takes_long(bare: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bare.container.settings, loop="asyncio") as live:

        async def long() -> None:
            json.dumps([{"n": i} for i in range(300_000)])

        with watched(live, monkeypatch) as watch:
            live.run(long())
        assert watch.longest()[0] > 1


def test_a_watch_sees_what_other_threads_are_kept_from(
    bare: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(bare.container.settings, loop="asyncio") as live:
        long = json.dumps([{"n": i} for i in range(300_000)]).encode()

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
