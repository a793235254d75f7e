"""The scheduler's, the KV blocks' and the store's tests pass in an environment without torch.

It holds what these parts need, from the packages that are installed here: nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.environments import make_environment, run_in

PACKAGES = (
    *("pytest", "pytest-timeout", "hypothesis"),
    *("msgspec", "numpy", "pydantic", "sqlalchemy"),
    # The store's own, and what its tests write files and ask servers with.
    *("alembic", "obstore", "psycopg", "psycopg-binary", "regex", "httpx", "safetensors"),
)
FOLDERS = ("tests/router_engine/scheduling", "tests/router_engine/kv", "tests/adapters_store")
NEEDS_PEFT = "tests/adapters_store/parity"
HEAVY = ("torch", "transformers", "peft", "accelerate", "fastapi", "zmq")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds PACKAGES, and what they require, alone."""
    return make_environment(tmp_path_factory.mktemp("without-torch"), PACKAGES)


def test_the_environment_lacks_what_computes_and_serves(python: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {HEAVY} if find_spec(n)])"
    assert run_in(python, "-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_the_tests_of_what_needs_no_torch_pass_there(python: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", f"--ignore={NEEDS_PEFT}")
    completed = run_in(python, "-m", "pytest", *options, *FOLDERS)
    assert completed.returncode == 0, completed.stdout[-10_000:] + completed.stderr[-2_000:]


@pytest.mark.parametrize("folder", FOLDERS)
def test_their_tests_are_collected_there(python: Path, folder: str) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--collect-only", f"--ignore={NEEDS_PEFT}")
    completed = run_in(python, "-m", "pytest", *options, folder)
    assert completed.returncode == 0, completed.stdout[-10_000:] + completed.stderr[-2_000:]
