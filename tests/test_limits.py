"""The size limits of files and functions, and the parts that must load without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "adaptermix",
    "adapters_store",
    "benchmarks",
    "deploy",
    "examples",
    "router_engine",
    "scripts",
    "server",
    "tests",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PACKAGES_WITHOUT_TORCH = (
    "adaptermix.mixture",
    "adaptermix.sampling",
    "adapters_store",
    "router_engine.scheduling",
    "router_engine.config",
    "router_engine.errors",
    "router_engine.events",
    "router_engine.processors",
    "router_engine.request",
    "router_engine.stats",
)
RUN_BY_ALEMBIC = ("env", "versions")  # they need its context and are no modules of ours
MODULES_WITHOUT_TORCH = (
    "router_engine.kv.block_pool",
    "router_engine.kv.block_table",
    "router_engine.scheduling.integrity",
    "router_engine.kv.prefix_index",
)


def source_files(*suffixes: str) -> list[Path]:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in files if path.suffix in suffixes)


def python_files() -> list[Path]:
    return source_files(".py")


def function_lengths(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield f"{node.name} (line {node.lineno})", node.end_lineno - node.lineno + 1


def modules_of(package: str) -> list[str]:
    """Every module in a package that is there, or the module itself."""
    folder = ROOT / package.replace(".", "/")
    if folder.with_suffix(".py").exists():
        return [package]
    names = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" in parts and set(parts) & set(RUN_BY_ALEMBIC):
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_there_is_something_to_measure() -> None:
    assert len(python_files()) > 50


def test_files_stay_short() -> None:
    files = (*python_files(), *source_files(".h", ".cpp"))
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    too_long = {
        str(path.relative_to(ROOT)): length
        for path, length in lengths.items()
        if length >= MAX_FILE_LINES
    }
    assert not too_long, f"split by what the parts do; the limit is {MAX_FILE_LINES} lines"


def test_functions_stay_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for path in python_files()
        for name, length in function_lengths(ast.parse(path.read_text()))
        if length >= MAX_FUNCTION_LINES
    ]
    assert not too_long, f"the limit is {MAX_FUNCTION_LINES} lines"


def test_the_length_of_a_function_counts_its_last_line() -> None:
    tree = ast.parse("def one():\n    a = 1\n    return a\n\nasync def two(): ...\n")
    assert dict(function_lengths(tree)) == {"one (line 1)": 3, "two (line 5)": 1}


@pytest.mark.parametrize("package", PACKAGES_WITHOUT_TORCH)
def test_a_package_loads_without_torch(package: str) -> None:
    names = modules_of(package)
    assert names, f"{package} has gone; change the list in this file"
    assert heavy_modules_after_importing(names) == ""


def test_kv_bookkeeping_loads_without_torch() -> None:
    names = [name for package in MODULES_WITHOUT_TORCH for name in modules_of(package)]
    assert len(names) == len(MODULES_WITHOUT_TORCH)
    assert heavy_modules_after_importing(names) == ""


def test_the_http_process_loads_without_torch() -> None:
    """It answers for an engine in another process, which alone pays for torch: 1.5 s, 250 MB."""
    assert heavy_modules_after_importing(["server.serving"]) == "fastapi starlette"


def heavy_modules_after_importing(names: list[str]) -> str:
    """The heavy libraries that a fresh interpreter holds once it has imported `names`."""
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'starlette'} & set(sys.modules)\n"
        "sys.stdout.write(' '.join(sorted(heavy)))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
