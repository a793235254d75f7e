"""Bodies that take long to read, check or answer, by the route that they are sent to.

What the reader of all bodies refuses, such as MANY strings, is there once as a list and once as
keys: it never comes as far as a route.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

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
    "empty lists of ids": ("/v1/completions", OPENAI | {"prompt": [[]] * 49_000}),
    "lists with a bad end": (
        "/v1/completions",
        OPENAI | {"prompt": [[5, 5]] * 49_000 + [["a"]]},
    ),
    "mixed lists": ("/v1/completions", OPENAI | {"prompt": [[1, "a"]] * 8000}),
    "messages": ("/v1/chat/completions", CHAT | {"messages": [TURN] * 40_000}),
    "parts": (
        "/v1/chat/completions",
        CHAT
        | {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 40_000}]},
    ),
    "a long model": ("/v1/completions", OPENAI | {"model": BIG, "prompt": "a"}),
    "a long user": ("/v1/completions", OPENAI | {"prompt": "a", "user": BIG}),
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
    "many scores": ("/score", {"inputs": "a", "completions": ["b" * 400] * 16}),
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
    "no candidates": {"candidates": [1] * MANY},
    "a tag": {"candidates": {"tag": "t"}},
    "a parameter": {"candidates": ["a0"], "x": BIG},
    "parameters": {"candidates": ["a0"], **{f"k{i}": 1 for i in range(8000)}},
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


def json_post(path: str, body: Any) -> Callable[[httpx.Client], httpx.Response]:
    # Written when it is sent: megabytes of each, which most runs of the suite never need.
    return lambda client: _raw(
        json.dumps(body, ensure_ascii=False).encode(), "application/json", path
    )(client)


def _get(path: str) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.get(path)


def _upload(files: list[Any]) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post("/admin/adapters", data={"name": "x"}, files=files)


INPUTS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    **{name: json_post(path, body) for name, (path, body) in JSON_BODIES.items()},
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
    "small files": _raw(
        b"".join(HEAD.replace(b'"a"', b'"%d"' % i) + b"x\r\n" for i in range(999)) + TAIL[2:],
        WAYS,
        "/admin/adapters",
    ),
    "parts with long headers": _raw(
        (HEAD.replace(b'"\r', b'"; z="' + b";" * 900 + b"\r") + b"x\r\n") * 64 + TAIL[2:],
        WAYS,
        "/admin/adapters",
    ),
    "a long cookie": lambda client: client.get("/health", headers={"cookie": "a=b;" * 7000}),
    "a long query": lambda client: client.get("/health?" + "a&" * 15_000),
    "a long encoded query": lambda client: client.get("/metrics?" + "%41&" * 7500),
    "a long type": _raw(b"{}", 'application/json; a="' + ";" * 30_000, "/generate"),
    "a long type of a form": _raw(TAIL, WAYS + '; a="' + ";" * 30_000, "/admin/adapters"),
    "as many headers as may be": lambda client: client.get(
        "/health", headers={f"x-{i}": "v" * 280 for i in range(90)}
    ),
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
