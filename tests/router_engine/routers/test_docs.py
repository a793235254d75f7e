"""The routers of the page for newcomers run as they stand there."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.routers.errors import RouterInputError
from router_engine.routers.registry import GROUP, RequestServices, RouterRegistry, TokenServices
from tests.router_engine.conftest import MakeHarness

DOCS = Path(__file__).parents[3] / "docs"


def registry_of_the_page(monkeypatch: pytest.MonkeyPatch) -> RouterRegistry:
    """The page's two routers, each block of code a module."""
    page = (DOCS / "add_a_router.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    entries = []
    for name, code in zip(("keywords", "turns"), codes, strict=True):
        module = ModuleType(f"{name}_of_the_page")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, "add_a_router.md", "exec"), module.__dict__)
        entries.append(EntryPoint(name, f"{module.__name__}:SPEC", GROUP))
    return RouterRegistry(entries)


def test_the_request_router_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    router = registry_of_the_page(monkeypatch).request_routers(RequestServices())["keywords"]
    params = {"words": [["how many", "sum"], ["def "]]}
    weights = asyncio.run(router.route("how many def are in def f?", ("m", "c"), params))
    assert weights == pytest.approx((2 / 5, 3 / 5))
    with pytest.raises(RouterInputError, match="1 lists for 2 candidates"):
        asyncio.run(router.route("x", ("m", "c"), {"words": [["a"]]}))


def test_the_token_router_of_the_page_in_an_engine(
    monkeypatch: pytest.MonkeyPatch, make_harness: MakeHarness, folders: list[Path]
) -> None:
    registry = registry_of_the_page(monkeypatch)
    harness = make_harness(routers=registry.token_routers(TokenServices(lambda: wake())))
    wake = harness.wake
    digests = tuple(harness.publish(f"a{i}", folders[i]) for i in range(2))
    routing = TokenRouting("turns", {"length": 2})
    first, second = (
        EngineRequest(
            name,
            tuple(range(5, 5 + length)),
            SamplingSpec(max_new_tokens=5),
            adapters=digests,
            routing=routing,
            reports=Reports(weights=True),
        )
        for name, length in (("first", 9), ("second", 4))
    )
    turns = [(1, 0), (1, 0), (0, 1), (0, 1), (1, 0)]
    for answer in harness.run(first, second):
        assert [token.weights for token in answer.tokens] == turns
    with pytest.raises(RouterInputError, match=r"length = 0"):
        registry.get("turns").check("token", {"length": 0})


NO_DEFAULT = {"top_k": "all", "threshold": "none"}


@pytest.mark.parametrize("name", RouterRegistry.discover().names)
def test_each_router_has_a_page_that_names_every_parameter(name: str) -> None:
    page = (DOCS / "routers" / f"{name}.md").read_text(encoding="utf-8")
    for parameter, field in RouterRegistry.discover().get(name).params.model_fields.items():
        default = "" if field.is_required() else field.default
        default = NO_DEFAULT[parameter] if default is None else default
        assert re.search(rf"\| `{parameter}` \| *`?{default}`? *\|", page), parameter
    assert {"## The equation", "## Parameters"} <= set(page.splitlines())
    assert f"[{name}](routers/{name}.md)" in (DOCS / "README.md").read_text("utf-8")
