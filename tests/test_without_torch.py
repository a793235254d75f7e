"""The scheduler's, the KV blocks' and the store's tests pass in an environment without torch.

It holds what these parts need, from the packages that are installed here: nothing is downloaded.
"""

from __future__ import annotations

import re
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("pytest", "pytest-timeout", "hypothesis"),
    *("msgspec", "numpy", "pydantic", "sqlalchemy"),
    # The store's own, and what its tests write files and ask servers with.
    *("alembic", "obstore", "psycopg", "psycopg-binary", "regex", "httpx", "safetensors"),
)
FOLDERS = ("tests/router_engine/scheduling", "tests/router_engine/kv", "tests/adapters_store")
NEEDS_PEFT = "tests/adapters_store/parity"
HEAVY = ("torch", "transformers", "peft", "accelerate", "fastapi", "zmq")


def _with_requirements(names: tuple[str, ...]) -> list[Distribution]:
    """The distributions of these packages, and of all that they require."""
    distributions: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions:
            continue
        distributions[name] = distribution(name)
        required = map(Requirement, distributions[name].requires or ())
        waiting += [
            each.name for each in required if not each.marker or each.marker.evaluate({"extra": ""})
        ]
    return list(distributions.values())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds PACKAGES, and what they require, alone."""
    home = tmp_path_factory.mktemp("without-torch")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
    (site,) = home.glob("lib/python3*/site-packages")
    for each in _with_requirements(PACKAGES):
        tops = {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (site / top).symlink_to(Path(str(each.locate_file(top))).resolve())
    return home / "bin" / "python"


def _run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (str(python), "-E", *arguments)  # nothing that this run was given
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_environment_lacks_what_computes_and_serves(python: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {HEAVY} if find_spec(n)])"
    assert _run(python, "-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_the_tests_of_what_needs_no_torch_pass_there(python: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", f"--ignore={NEEDS_PEFT}")
    completed = _run(python, "-m", "pytest", *options, *FOLDERS)
    assert completed.returncode == 0, completed.stdout[-10_000:] + completed.stderr[-2_000:]


@pytest.mark.parametrize("folder", FOLDERS)
def test_their_tests_are_collected_there(python: Path, folder: str) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--collect-only", f"--ignore={NEEDS_PEFT}")
    completed = _run(python, "-m", "pytest", *options, folder)
    assert completed.returncode == 0, completed.stdout[-10_000:] + completed.stderr[-2_000:]
