"""Which routers there are, and what is said of those that are not."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from router_engine.errors import RouterError
from router_engine.routers.centroids import CentroidService
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.sessions import SimilarityTokenRouter
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.given import GivenParams, GivenTokenRouter
from router_engine.routers.registry import (
    GROUP,
    RequestServices,
    RouterRegistry,
    RouterSpec,
    TokenServices,
)
from router_engine.routers.retrieval import RetrievalRequestRouter
from router_engine.routers.similarity import SimilarityRequestRouter
from tests.router_engine.routers.shelf import MemoryShelf

THIRD_PARTY = RouterSpec("mine", "A test's own.", GivenParams, token=lambda s: GivenTokenRouter())
NOT_A_SPEC = "mine"


def here(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{attribute}", GROUP)


def nothing() -> None:
    return


def test_the_built_in_routers_are_there() -> None:
    registry = RouterRegistry.discover()
    levels = {name: registry.get(name).levels for name in registry.names}
    assert levels == {
        "arrow": ("layer",),
        "given": ("token",),
        "hidden_mean": ("token",),
        "random": ("request", "token"),
        "retrieval": ("request",),
        "similarity": ("request", "token"),
        "uniform": ("request", "token"),
    }


def test_each_router_describes_its_parameters() -> None:
    schema = RouterRegistry.discover().get("similarity").json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {
        "scoring",
        "temperature",
        "top_k",
        "threshold",
        "sharpening",
        "window",
    }


def test_an_unknown_router_is_named_with_its_neighbours() -> None:
    with pytest.raises(RouterInputError) as caught:
        RouterRegistry.discover().get("similarty")
    assert str(caught.value) == (
        "unknown router 'similarty'; did you mean similarity? "
        "(known: arrow, given, hidden_mean, random, retrieval, similarity, uniform)"
    )


def test_a_level_or_parameter_that_a_router_lacks_is_refused() -> None:
    registry = RouterRegistry.discover()
    registry.get("similarity").check("request", {"top_k": 2})
    with pytest.raises(RouterInputError, match="works at level token, not 'request'"):
        registry.get("given").check("request", {"weights": [[1.0]]})
    with pytest.raises(RouterInputError, match="no parameter 'every'"):
        registry.get("similarity").check("token", {"every": 2})


def test_of_many_wrong_parameters_a_few_are_told() -> None:
    spec = RouterRegistry.discover().get("similarity")
    wrong = {f"windo{index}": 1 for index in range(60)} | {"top_k": "a", "scoring": 1}
    with pytest.raises(RouterInputError, match=r"; and 54 more$") as caught:
        spec.check("request", wrong)
    assert str(caught.value).count("takes no parameter") == 8


@pytest.mark.parametrize("key", ["windo" * 400_000, "\u4e00" * 400_000, "\ud800"])
def test_a_long_name_is_read_and_told_in_part(key: str) -> None:
    registry = RouterRegistry.discover()
    for refused in (
        lambda: registry.get("similarity").check("request", {key: 1}),
        lambda: registry.get(key),
    ):
        with pytest.raises(RouterInputError) as caught:
            refused()
        assert len(str(caught.value)) < 512


def test_only_what_the_services_allow_is_made(tmp_path: Path) -> None:
    registry = RouterRegistry.discover()
    without_encoder = {"random", "uniform"}
    assert set(registry.token_routers(TokenServices(wake=nothing))) == {"given", *without_encoder}
    assert set(registry.request_routers(RequestServices())) == without_encoder
    endpoint = f"ipc://{tmp_path / 'encoder'}"
    routers = registry.token_routers(TokenServices(nothing, endpoint))
    assert isinstance(routers["similarity"], SimilarityTokenRouter)
    for router in routers.values():
        router.close()
    client = EncoderClient(endpoint)
    services = RequestServices(client, CentroidService(MemoryShelf({}), client))
    by_request = registry.request_routers(services)
    assert isinstance(by_request["similarity"], SimilarityRequestRouter)
    assert isinstance(by_request["retrieval"], RetrievalRequestRouter)


@pytest.mark.parametrize("name", ["similarity", "retrieval"])
def test_what_reads_text_says_that_there_is_no_encoder(name: str) -> None:
    spec = RouterRegistry.discover().get(name)
    assert spec.request is not None
    with pytest.raises(RouterUnavailableError, match=f"'{name}' needs .* runs none"):
        spec.request(RequestServices())
    if spec.token is not None:
        with pytest.raises(RouterUnavailableError, match=f"'{name}' needs .* runs none"):
            spec.token(TokenServices(nothing))


def test_a_third_party_joins_by_an_entry_point() -> None:
    registry = RouterRegistry([here("mine", "THIRD_PARTY")])
    assert registry.get("mine") is THIRD_PARTY
    assert set(registry.token_routers(TokenServices(nothing))) == {"mine"}


def test_a_router_is_imported_when_it_is_asked_for() -> None:
    registry = RouterRegistry([EntryPoint("broken", "no_such_module:SPEC", GROUP)])
    assert registry.names == ("broken",)
    with pytest.raises(RouterError, match=r"'broken' \(no_such_module:SPEC\) cannot be loaded"):
        registry.get("broken")


@pytest.mark.parametrize("entry", [here("mine", "NOT_A_SPEC"), here("other", "THIRD_PARTY")])
def test_an_entry_must_be_a_spec_of_its_name(entry: EntryPoint) -> None:
    with pytest.raises(RouterError, match="is no RouterSpec with the name"):
        RouterRegistry([entry]).get(entry.name)


def test_two_routers_of_one_name_are_refused() -> None:
    with pytest.raises(RouterError, match="two routers are named 'mine'"):
        RouterRegistry([here("mine", "THIRD_PARTY"), here("mine", "NOT_A_SPEC")])
