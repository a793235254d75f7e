"""The router of the how-to page runs as it stands there."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from router_engine.routers.errors import RouterInputError
from router_engine.routers.layer.arrow import ArrowParams
from router_engine.routers.registry import GROUP, RequestServices, RouterRegistry
from router_engine.routers.scoring import SimilarityParams

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


@pytest.mark.parametrize(
    ("name", "params"), [("similarity", SimilarityParams), ("arrow", ArrowParams)]
)
def test_the_page_of_a_router_names_every_parameter(name: str, params: type[BaseModel]) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name, field in params.model_fields.items():
        default = "all" if field.default is None else field.default
        assert re.search(rf"\| `{name}` \| `?{default}`? \|", page), name
