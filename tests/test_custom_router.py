"""A newcomer's router: packaged as the page says, installed by pip, used on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_engine.routers.registry import RouterRegistry
from scripts.docs import ROOT
from tests.support.waiting import HANG_SECONDS

EXAMPLE = ROOT / "examples" / "custom_router"
PROMPT = "How many are in the sum?"
WORDS = [["How many", "sum"], ["def ", "class "]]


@pytest.fixture(scope="module")
def client(desk_url: str) -> Iterator[httpx.Client]:
    """Asks a server process that finds the installed package, with the examples' adapters."""
    with httpx.Client(base_url=desk_url, timeout=HANG_SECONDS) as client:
        yield client


def ask(client: httpx.Client, prompt: str, **params: Any) -> httpx.Response:
    router = {"name": "keywords", "candidates": ["math", "code"], **params}
    parameters = {"max_new_tokens": 4, "ignore_eos_token": True, "details": True}
    body = {"inputs": prompt, "parameters": parameters, "mixture": {"router": router}}
    return client.post("/generate", json=body)


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "add_a_router.md").read_text("utf-8")
    for name, language in (("keyword_router.py", "python"), ("pyproject.toml", "toml")):
        text = (EXAMPLE / name).read_text("utf-8")
        assert f"```{language}\n{text}```" in page
    assert len((EXAMPLE / "keyword_router.py").read_text("utf-8").splitlines()) <= 30


def test_it_is_no_part_of_our_code() -> None:
    assert "keywords" not in RouterRegistry.discover().names


def test_a_request_gets_the_weights_that_the_router_chose(client: httpx.Client) -> None:
    answer = ask(client, PROMPT, words=WORDS)
    assert answer.status_code == 200, answer.text
    routing = answer.json()["details"]["routing"]
    assert routing["router"] == "keywords"
    assert routing["adapters"] == ["math@1", "code@1"]
    assert routing["weights"] == [[0.75, 0.25]] * 4
    other = ask(client, "class A: def f", words=WORDS).json()["details"]["routing"]
    assert other["weights"] == [[0.25, 0.75]] * 4


def test_it_is_listed_with_its_parameters(client: httpx.Client) -> None:
    routers = {one["name"]: one for one in client.get("/admin/routers").json()["routers"]}
    assert routers["keywords"]["levels"] == ["request"]
    words = routers["keywords"]["parameters"]["properties"]["words"]
    assert words["description"] == "One list of words per candidate."
    assert "keywords" in client.get("/info").json()["routers"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"wrods": WORDS}, "'wrods'; did you mean words?"),
        ({"words": "sum"}, "words = 'sum'"),
        ({"words": [["sum"]]}, "words: 1 lists for 2 candidates"),
        ({"words": WORDS, "level": "token"}, "works at level request, not 'token'"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(
    client: httpx.Client, params: dict[str, Any], said: str
) -> None:
    answer = ask(client, PROMPT, **params)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_the_installed_package_is_used_not_the_source(custom_router_path: str) -> None:
    site = Path(custom_router_path.split(":")[0])
    assert (site / "keyword_router.py").is_file()
    assert list(site.glob("custom_router-*.dist-info/entry_points.txt"))
