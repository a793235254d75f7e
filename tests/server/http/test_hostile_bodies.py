"""Whatever a body holds, it is answered or refused by name: no field of any route is a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from server.http.access import SMALL_BODY
from server.schemas.adapters import AliasBody, PinBody
from server.schemas.generate import GenerateAnyBody
from server.schemas.mixture import FixedMixture
from server.schemas.openai import ChatBody, CompletionBody
from server.schemas.score import ScoreBody
from tests.server.live import Live, serving, tiny_settings

MIXTURE = {"adapters": [{"name": "math", "weight": 0.5}], "combination": "sum"}
ROUTED = {
    "router": {"name": "random", "level": "request", "candidates": ["math", "code"], "seed": 1}
}
PARAMETERS = {
    **{"max_new_tokens": 1, "min_new_tokens": 0, "temperature": 0.5, "do_sample": True},
    **{"top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 1},
    **{"frequency_penalty": 0.1, "presence_penalty": 0.1, "stop": ["x"], "truncate": 4},
    **{"ignore_eos_token": False, "return_full_text": True, "apply_chat_template": False},
    **{"details": True, "top_n_tokens": 2, "uncertainty": True, "gates": True},
}
COMMON = {
    **{"model": "tiny-random", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "n": 1},
    **{"stop": ["x"], "seed": 1, "frequency_penalty": 0.1, "presence_penalty": 0.1, "user": "u"},
    **{
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 0,
        "priority": 0,
        "timeout": 600.0,
    },
    **{"ignore_eos": False, "routing": True, "mixture": MIXTURE, "stream": False},
}
# (method, path) -> the body's schema, and bodies that work, which have every field between them.
WORKING: Mapping[tuple[str, str], tuple[type[BaseModel], list[dict[str, Any]]]] = {
    ("POST", "/generate"): (
        GenerateAnyBody,
        [
            {
                "inputs": "hi",
                "parameters": PARAMETERS,
                "mixture": MIXTURE,
                "priority": 1,
                "timeout": 600.0,
            },
            {"inputs": "hi", "parameters": {"max_new_tokens": 1}, "mixture": ROUTED},
            {"inputs": "hi", "parameters": {"max_new_tokens": 1, "adapter_id": "math"}},
        ],
    ),
    ("POST", "/score"): (
        ScoreBody,
        [
            {"inputs": "a", "completions": ["b"], "mixture": MIXTURE, "uncertainty": True},
            {
                "inputs": "a",
                "completions": ["b"],
                "adapter": "math",
                "priority": 1,
                "timeout": 600.0,
            },
        ],
    ),
    ("POST", "/v1/completions"): (
        CompletionBody,
        [
            {"prompt": "a", "echo": True, **COMMON},
            {"prompt": [[5, 6], [7]], "model": "math", "max_tokens": 1, "logprobs": 1},
        ],
    ),
    ("POST", "/v1/chat/completions"): (
        ChatBody,
        [
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "t"}]},
                ],
                **COMMON,
                "logprobs": True,
                "top_logprobs": 2,
            }
        ],
    ),
    ("PUT", "/admin/merged"): (FixedMixture, [MIXTURE]),
    ("PUT", "/admin/adapters/math/aliases/stable"): (AliasBody, [{"version": 1}]),
    ("POST", "/admin/adapters/math/pin"): (PinBody, [{"pinned": False}]),
}
# As they stand in the body: some are no Python values.
HOSTILE = (
    *(r'"\ud800"', r'"\udfff tail"', r'"\u0000"', r'"\u0085\u2028"', '""', '" "'),
    *("1180591620717411303424", "-1180591620717411303424", "9223372036854775808", "1e999"),
    *("NaN", "-Infinity", "-1", "0", "0.5", "true", "false", "null", '"3"', '"yes"'),
    *("[]", "{}", "[null]", '[""]', '{"": 1}', r'{"\ud800": 1}', r'["\ud800"]', "[[[[[[]]]]]]"),
    *("[" * 150 + "]" * 150, '"' + "x" * 5000 + '"', "[" + "1," * 5000 + "1]", "1" * 400),
)


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = next(iter(folders.values())).parent
    with serving(tiny_settings(tmp_path_factory.mktemp("hostile"), adapters=directory)) as live:
        yield live


def send(served: Live, route: tuple[str, str], body: str | bytes) -> tuple[int, Any]:
    method, path = route
    headers = {"Content-Type": "application/json"}
    content = body if isinstance(body, bytes) else body.encode()
    answer = served.client.request(method, path, content=content, headers=headers)
    is_json = answer.headers["content-type"] == "application/json"  # and no stream of events
    return answer.status_code, answer.json() if is_json else {}


def require_answer(route: tuple[str, str], body: str | bytes, status: int, reply: Any) -> None:
    told = f"{route} {body[:300]!r} -> {status} {str(reply)[:300]}"
    assert status < 500, told
    if status >= 400:
        error = reply["error"]
        message = error["message"] if route[1].startswith("/v1/") else error
        assert len(message.encode()) <= 1024, told


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a body, the body itself included."""
    yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            yield from places(one, (*path, key))


def put(value: Any, path: tuple[Any, ...], mark: str) -> Any:
    """A copy with a mark in one place."""
    if not path:
        return mark
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], mark)
    return copy


def spoilt() -> Iterator[tuple[tuple[str, str], int, tuple[Any, ...]]]:
    for route, (_, bodies) in WORKING.items():
        for index, body in enumerate(bodies):
            for path in places(body):
                yield route, index, path


@pytest.mark.parametrize("route", WORKING, ids=" ".join)
def test_the_bodies_work_and_have_every_field(served: Live, route: tuple[str, str]) -> None:
    schema, bodies = WORKING[route]
    given: set[str] = set()
    for body in bodies:
        status, reply = send(served, route, json.dumps(body))
        assert status == 200, reply
        given |= set(body)
    optional = {"stream", "stream_options", "max_completion_tokens", "gates"}
    assert set(schema.model_fields) - optional <= given
    if route == ("PUT", "/admin/merged"):
        served.client.delete("/admin/merged")


@pytest.mark.parametrize(
    ("route", "index", "path"),
    list(spoilt()),
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_no_value_in_any_place_is_a_failure(
    served: Live, route: tuple[str, str], index: int, path: tuple[Any, ...]
) -> None:
    body = WORKING[route][1][index]
    for hostile in HOSTILE:
        text = json.dumps(put(body, path, "\0mark")).replace('"\\u0000mark"', hostile)
        require_answer(route, text, *send(served, route, text))
    if route == ("PUT", "/admin/merged"):
        served.client.delete("/admin/merged")


@pytest.mark.parametrize("route", WORKING, ids=" ".join)
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"inputs": "\xff"}', b"null", b"7", b'"x"'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"[]," * 400_000 + b"[]]", b"\0" * 100),
        *(b'{"inputs": "a", "inputs": "b"}', b'{"x": 1}' * 2, b"{} trailing", b"// no comment\n{}"),
    ],
)
def test_what_is_no_body_is_refused(served: Live, route: tuple[str, str], body: bytes) -> None:
    status, reply = send(served, route, body)
    is_empty_pin = route[1].endswith("/pin") and body in (b"", b"null")
    refused = (413, 422) if len(body) > SMALL_BODY else (422,)
    assert status in ((200,) if is_empty_pin else refused)
    require_answer(route, body, status, reply)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((("parameters", "max_new_tokens"), value) for value in ("3", 3.0, True, [3])),
        *((("parameters", "temperature"), value) for value in ("1", True)),
        *((("parameters", "do_sample"), value) for value in ("yes", 1, "true")),
        *((("inputs",), value) for value in (3, True, ["x"])),
    ],
)
def test_types_are_not_guessed(served: Live, path: tuple[str, ...], value: Any) -> None:
    body = put({"inputs": "x", "parameters": dict.fromkeys(path[1:])}, path, value)
    status, reply = send(served, ("POST", "/generate"), json.dumps(body))
    assert status == 422
    assert ".".join(path) in reply["error"]


@pytest.mark.parametrize("route", WORKING, ids=" ".join)
def test_a_key_that_comes_twice_is_refused(served: Live, route: tuple[str, str]) -> None:
    """At the top, and in every object within."""
    for body in WORKING[route][1]:
        for path in places(body):
            inner: Any = body
            for step in path:
                inner = inner[step]
            if not isinstance(inner, dict):
                continue
            key = json.dumps(next(iter(inner)))
            twice = f"{{{key}: 1, {json.dumps(inner)[1:]}"
            text = json.dumps(put(body, path, "\0mark")).replace('"\\u0000mark"', twice)
            status, reply = send(served, route, text)
            assert status == 422
            assert "uplicate" in str(reply)


def test_many_problems_are_told_briefly(served: Live) -> None:
    body = {"inputs": "x", "parameters": {"stop": [1] * 20_000}}
    status, reply = send(served, ("POST", "/generate"), json.dumps(body))
    assert status == 422
    assert len(reply["error"]) <= 1024


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["math", "code@1", "sum", "linear", "token", "layer", "random", "user"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def bodies(model: type[BaseModel], depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of a schema's fields, of any value, or nearly right ones."""
    fields = {}
    for name, field in model.model_fields.items():
        near = [bodies(part, depth + 1) for part in _models(field.annotation)] if depth < 4 else []
        fields[name] = st.one_of(VALUES, *near, *(st.lists(one, max_size=2) for one in near))
    return st.fixed_dictionaries({}, optional=fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("route", WORKING, ids=" ".join)
def test_no_object_is_a_failure(served: Live, route: tuple[str, str], data: st.DataObject) -> None:
    schema, working = WORKING[route]
    body = data.draw(st.sampled_from(working)) | data.draw(bodies(schema))
    body.pop("stream", None)
    text = json.dumps(body)
    require_answer(route, text, *send(served, route, text))
