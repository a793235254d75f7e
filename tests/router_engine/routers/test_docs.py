"""The router of the how-to page runs as it stands there."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from router_engine.routers.errors import RouterInputError
from router_engine.routers.registry import GROUP, RequestServices, RouterRegistry

DOCS = Path(__file__).parents[3] / "docs" / "routers"


def test_the_keyword_router_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "how-to-add-a-router.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    module = ModuleType("keywords_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "how-to-add-a-router.md", "exec"), module.__dict__)
    registry = RouterRegistry([EntryPoint("keywords", f"{module.__name__}:SPEC", GROUP)])
    router = registry.request_routers(RequestServices())["keywords"]
    params = {"words": [["how many", "sum"], ["def "]]}
    weights = asyncio.run(router.route("how many def are in def f?", ("m", "c"), params))
    assert weights == pytest.approx((1 / 3, 2 / 3))
    with pytest.raises(RouterInputError, match="1 lists for 2 candidates"):
        asyncio.run(router.route("x", ("m", "c"), {"words": [["a"]]}))


NO_DEFAULT = {"top_k": "all", "threshold": "none", "weights": ""}


@pytest.mark.parametrize("name", RouterRegistry.discover().names)
def test_each_router_has_a_page_that_names_every_parameter(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for parameter, field in RouterRegistry.discover().get(name).params.model_fields.items():
        default = NO_DEFAULT.get(parameter, field.default)
        assert re.search(rf"\| `{parameter}` \| *`?{default}`? *\|", page), parameter
    assert {"## The equation", "## Parameters"} <= set(page.splitlines())
    assert f"[{name}](routers/{name}.md)" in (DOCS.parent / "README.md").read_text("utf-8")
