"""Files of a model are read where whatever is wrong with them becomes one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("adaptermix", "adapters_store", "router_engine", "server", "training", "benchmarks"),
    "deploy",
)
# Where `refused` is not around the reading itself, and why.
ELSEWHERE = {
    "benchmarks/peers/workers/transformers_peft.py": "a peer, on a base that ours has read before",
    "benchmarks/gpu/peft.py": "a peer, on a base that ours has read before",
}


def _functions(tree: ast.AST) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _reads(node: ast.AST) -> set[ast.AST]:
    return {
        one
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and one.attr == "from_pretrained"
    }


def _guards(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == "refused"
        for one in ast.walk(node)
    )


def test_nothing_reads_a_model_without_the_guard() -> None:
    unguarded = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            guarded = [_reads(one) for one in _functions(tree) if _guards(one)]
            if _reads(tree) - set().union(*guarded):
                unguarded.add(path.relative_to(ROOT).as_posix())
    assert unguarded == set(ELSEWHERE)
