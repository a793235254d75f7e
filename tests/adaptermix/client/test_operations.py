"""Every operation of the HTTP API has a method in both clients."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest

from adaptermix import AsyncClient, Client, Mixture
from adaptermix.client import adapters, generation, openai, system
from adaptermix.client.calls import Call, StreamCall
from scripts.docs import OPENAPI

Operation = tuple[str, str]
AnyCall = Call[Any] | StreamCall[Any]
CHAT = [{"role": "user", "content": "hello"}]

# Each operation with the method that asks for it, and a call that the method executes.
METHODS: dict[Operation, tuple[str, Callable[[], AnyCall]]] = {
    ("post", "/generate"): ("generate", lambda: generation.generate("hello")),
    ("post", "/generate_stream"): ("stream", lambda: generation.stream("hello")),
    ("post", "/score"): ("score", lambda: generation.score("hello", ["a"])),
    ("post", "/v1/completions"): ("complete", lambda: openai.complete("hello")),
    ("post", "/v1/chat/completions"): ("chat", lambda: openai.chat(CHAT)),
    ("get", "/v1/models"): ("models", openai.models),
    ("get", "/v1/models/{model}"): ("model", lambda: openai.model("a@1")),
    ("post", "/admin/adapters"): ("adapters.publish", lambda: adapters.publish("a")),
    ("post", "/admin/adapters/check"): ("adapters.check", lambda: adapters.check("a")),
    ("get", "/admin/adapters"): ("adapters.list", adapters.list_adapters),
    ("get", "/admin/adapters/{name}"): ("adapters.show", lambda: adapters.show("a/b")),
    ("delete", "/admin/adapters/{name}"): ("adapters.delete", lambda: adapters.delete("a")),
    ("get", "/admin/adapters/{name}/texts"): ("adapters.texts", lambda: adapters.texts("a")),
    ("put", "/admin/adapters/{name}/texts"): (
        "adapters.set_texts",
        lambda: adapters.set_texts("a", ["text"]),
    ),
    ("put", "/admin/adapters/{name}/aliases/{alias}"): (
        "adapters.set_alias",
        lambda: adapters.set_alias("a", "b", 1),
    ),
    ("delete", "/admin/adapters/{name}/aliases/{alias}"): (
        "adapters.delete_alias",
        lambda: adapters.delete_alias("a", "b"),
    ),
    ("post", "/admin/adapters/{name}/load"): ("adapters.load", lambda: adapters.load("a")),
    ("post", "/admin/adapters/{name}/pin"): ("adapters.pin", lambda: adapters.pin("a")),
    ("post", "/admin/adapters/{name}/unload"): ("adapters.unload", lambda: adapters.unload("a")),
    ("get", "/admin/merged"): ("merged.get", system.merged),
    ("put", "/admin/merged"): ("merged.set", lambda: system.set_merged(Mixture(a=1.0))),
    ("delete", "/admin/merged"): ("merged.clear", system.clear_merged),
    ("get", "/health/live"): ("live", system.live),
    ("get", "/health/ready"): ("ready", system.ready),
    ("get", "/metrics"): ("metrics", system.metrics),
    ("get", "/info"): ("info", system.info),
    ("get", "/admin/routers"): ("routers", system.routers),
}
SAME = {  # operations that are other paths of one above, for clients that know one path only
    ("post", "/"): ("post", "/generate"),
    ("get", "/health"): ("get", "/health/ready"),
}
BESIDE = {"stream_chat", "stream_complete"}  # the same operations as chat and complete, streamed
OWN = {"adapters", "merged", "address", "base_model", "send", "open", "close"}  # no operations
DOCUMENT: dict[str, Any] = json.loads(OPENAPI.read_text("utf-8"))


def without_method(document: dict[str, Any]) -> set[Operation]:
    """Operations that no client asks for."""
    operations = {(verb, path) for path, item in document["paths"].items() for verb in item}
    return operations - METHODS.keys() - SAME.keys()


def test_every_operation_has_a_method() -> None:
    assert without_method(DOCUMENT) == set()
    operations = {(verb, path) for path, item in DOCUMENT["paths"].items() for verb in item}
    assert METHODS.keys() | SAME.keys() == operations
    assert set(SAME.values()) <= METHODS.keys()


def test_a_new_operation_would_be_missed() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["paths"]["/admin/mixtures"] = {"get": {}}
    document["paths"]["/score"]["put"] = {}
    assert without_method(document) == {("get", "/admin/mixtures"), ("put", "/score")}


@pytest.mark.parametrize("operation", METHODS, ids=" ".join)
def test_the_method_asks_for_that_operation(operation: Operation) -> None:
    verb, template = operation
    name, make = METHODS[operation]
    request = make().request
    assert request.method == verb.upper()
    pattern = re.sub(r"\{\w+\}", "[^/]+", template)
    assert re.fullmatch(pattern, request.path), request.path
    with Client("http://127.0.0.1:9") as client:
        for front in (client, AsyncClient("http://127.0.0.1:9")):
            method = attrgetter(name)(front)
            assert method.__doc__
            arguments = list(inspect.signature(method).parameters)
            assert arguments == list(inspect.signature(method.__func__).parameters)[1:]


def test_both_clients_have_the_same_methods_and_no_others() -> None:
    def names(front: Any) -> set[str]:
        resources = {f"adapters.{name}" for name in _public(front.adapters)}
        return _public(front) | resources | {f"merged.{name}" for name in _public(front.merged)}

    with Client("http://127.0.0.1:9") as client:
        there = names(client)
    assert there == names(AsyncClient("http://127.0.0.1:9"))
    assert there == {name for name, _ in METHODS.values()} | BESIDE | OWN


def _public(front: Any) -> set[str]:
    is_part = type(front).__name__.endswith(("Adapters", "Merged"))
    names = {name for name in dir(front) if not name.startswith("_")}
    return names - ({"send", "open"} if is_part else set())
