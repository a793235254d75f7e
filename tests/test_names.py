"""One name, one thing: public classes in the packages, and files in the engine."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters_store", "router_engine", "server", "adaptermix", "benchmarks", "deploy")
# What the front gives to users has the words that they know, as the schemas and the engine have.
SHARED = {
    "Mixture": {"adaptermix/mixture.py", "server/schemas/mixture.py"},
    "SamplingParams": {"adaptermix/sampling.py", "router_engine/request.py"},
    # The command line's own error beside the client's, and who starts a process beside who owns it.
    "ForeignAnswerError": {"adaptermix/errors.py", "adaptermix/cli/client.py"},
    "EncoderProcess": {
        "router_engine/routers/encoder/encoder_process.py",
        "server/adapters/encoder.py",
    },
}
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
    assert not {name: where for name, where in twice.items() if where != SHARED.get(name)}


def test_no_file_of_the_engine_has_another_s_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in _files("router_engine"):
        if path.stem not in SHARED_FILES:
            places[path.stem].append(path.relative_to(ROOT).as_posix())
    assert not {name: where for name, where in places.items() if len(where) > 1}
