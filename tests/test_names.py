"""One name, one thing: public classes in the packages, and files in the engine."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters_store", "router_engine", "server", "adaptermix", "benchmarks", "deploy")
SHARED_FILES = ("base", "errors", "__init__")


def _files(package: str) -> Iterator[Path]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            yield path


def _public_classes(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_no_public_class_name_stands_twice() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in _files(package):
            for name in _public_classes(path):
                places[name].add(path.relative_to(ROOT).as_posix())
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice


def test_no_file_of_the_engine_has_another_s_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in _files("router_engine"):
        if path.stem not in SHARED_FILES:
            places[path.stem].append(path.relative_to(ROOT).as_posix())
    assert not {name: where for name, where in places.items() if len(where) > 1}
