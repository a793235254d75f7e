"""The OpenAPI page: every endpoint with an example and its errors, and examples that are true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from server.app import create_app
from server.http.container import Container
from server.http.endpoints import adapters, merged, system
from server.http.openai import endpoints as openai
from server.schemas import adapters as adapter_schemas
from server.schemas import generate as generate_schemas
from server.schemas import health as health_schemas
from server.schemas import mixture as mixture_schemas
from server.schemas import openai as openai_schemas
from tests.server.live import tiny_settings

NO_INPUT = ("/health", "/health/live", "/health/ready", "/metrics")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    container = Container(tiny_settings(tmp_path_factory.mktemp("openapi")))
    yield create_app(container).openapi()
    container.store.close()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_every_route_declares_its_errors(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        if name.split()[1] not in NO_INPUT:
            codes = {code for code in operation["responses"] if code.startswith("4")}
            assert "401" in codes, name
            assert len(codes) > 1 or name.endswith(("/info", "/routers", "/merged")), name


def test_every_answer_has_an_example_and_every_error_one(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        assert operation["summary"], name
        assert operation["description"], name
        for code, response in operation["responses"].items():
            for content in response["content"].values():
                assert "example" in content, f"{name} {code}"


def test_every_body_and_parameter_has_an_example_or_a_description(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        for parameter in operation.get("parameters", ()):
            described = {"example", "examples", "description"} & {*parameter, *parameter["schema"]}
            assert described, f"{name} {parameter['name']}"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            assert "examples" in body or "examples" in body["schema"], name


def test_every_route_asks_for_a_key_but_the_open_ones(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        assert ("security" in operation) == (name.split()[1] not in NO_INPUT), name


EXAMPLES: list[tuple[type[BaseModel], Any]] = [
    *(
        (generate_schemas.GenerateAnyBody, example["value"])
        for example in generate_schemas.GENERATE_EXAMPLES.values()
    ),
    *(
        (openai_schemas.CompletionBody, example["value"])
        for example in openai_schemas.COMPLETION_EXAMPLES.values()
    ),
    *(
        (openai_schemas.ChatBody, example["value"])
        for example in openai_schemas.CHAT_EXAMPLES.values()
    ),
    (generate_schemas.GenerateReply, generate_schemas.REPLY_EXAMPLE),
    (mixture_schemas.FixedMixture, mixture_schemas.FIXED_EXAMPLE),
    (adapter_schemas.AdapterReply, adapter_schemas.ADAPTER_EXAMPLE),
    (adapter_schemas.CheckReply, adapter_schemas.CHECK_EXAMPLE),
    (adapter_schemas.ResidencyReply, adapter_schemas.RESIDENCY_EXAMPLE),
    (adapter_schemas.MergedReply, adapter_schemas.MERGED_EXAMPLE),
    (adapter_schemas.MergedReply, merged._UNMERGED),
    (openai_schemas.CompletionReply, openai._COMPLETION),
    (openai_schemas.ChatReply, openai._CHAT),
    (openai_schemas.ModelCard, openai._MODEL),
    (health_schemas.InfoReply, system._INFO),
    (adapter_schemas.RouterList, system._ROUTERS),
]


@pytest.mark.parametrize(("model", "example"), EXAMPLES)
def test_examples_are_valid(model: type[BaseModel], example: Any) -> None:
    model.model_validate(example)


def test_routes_of_the_issue_are_there(schema: dict[str, Any]) -> None:
    names = {name for name, _ in operations(schema)}
    assert {
        "POST /generate",
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "GET /v1/models",
        "POST /admin/adapters",
        "POST /admin/adapters/check",
        "PUT /admin/adapters/{name}/aliases/{alias}",
        "POST /admin/adapters/{name}/unload",
        "PUT /admin/merged",
    } <= names
    assert adapters.router.prefix == "/admin/adapters"


def test_the_page_is_served(tmp_path: Path) -> None:
    container = Container(tiny_settings(tmp_path))
    paths = {getattr(route, "path", "") for route in create_app(container).routes}
    container.store.close()
    assert {"/docs", "/openapi.json"} <= paths
