"""The package as pip installs it, with none of its extras, serves; what needs an extra is listed.

Tests run where everything is installed, so that nobody would see an import of what strangers lack.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.environments import ROOT, make_environment, requirements, run_in

EXTRAS = ("triton", "peft", "matplotlib", "aiohttp", "sacrebleu", "torchao", "psycopg", "llama_cpp")
# Modules that may need them; a command or a setting that leads there names the extra.
NEED_EXTRAS = (
    "adapters_store.metadata.postgres",
    "adaptermix.bench",
    "adaptermix.cli.heatmap",
    "adaptermix.evaluation",
    "adaptermix.training",
    "router_engine.backends.cuda",
    "router_engine.kernels.triton",
)
# What a machine without a card, and so without Triton, plans with.
PLANNED_WITH = (
    "router_engine.backends.cuda.graphs",
    "router_engine.backends.cuda.room",
    "router_engine.kernels.triton.tiling",
)
ALEMBIC_LOADS = "adapters_store.metadata.migrations.env"

_IMPORT_ALL = """
import importlib
import pkgutil
import sys

packages = list(map(importlib.import_module, sys.argv[1:]))
modules = (m for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + "."))
for module in modules:
    try:
        importlib.import_module(module.name)
    except Exception as error:
        print(module.name, getattr(error, "name", None) or repr(error))
"""
_ASK = """
from adaptermix import LLM, SamplingParams

(answer,) = LLM("tiny-random").generate(["a b"], SamplingParams(max_tokens=3, ignore_eos=True))
print(len(answer.token_ids))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment as `pip install adaptermix` makes it for a CPU."""
    home = tmp_path_factory.mktemp("core")
    return make_environment(home, requirements("adaptermix"), without=("triton",))


@pytest.fixture(scope="module")
def failed(python: Path) -> dict[str, str]:
    """The modules that cannot be imported there, and what each of them lacks."""
    packages = ("adaptermix", "server", "router_engine", "adapters_store")
    done = run_in(python, "-c", _IMPORT_ALL, *packages)
    assert done.returncode == 0, done.stderr
    lines = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {module: lack for module, lack in lines if module != ALEMBIC_LOADS}


def test_what_lacks_an_extra_is_where_extras_are_needed(failed: dict[str, str]) -> None:
    assert set(failed.values()) <= set(EXTRAS)
    assert [module for module in failed if not module.startswith(NEED_EXTRAS)] == []
    assert [module for module in PLANNED_WITH if module in failed] == []


def test_every_place_that_may_need_extras_does(failed: dict[str, str]) -> None:
    assert [place for place in NEED_EXTRAS if not any(m.startswith(place) for m in failed)] == []


def test_the_engine_answers_there(python: Path) -> None:
    done = run_in(python, "-c", _ASK)
    assert done.stdout.strip() == "3", done.stderr


def test_a_gpu_is_planned_for_there(python: Path) -> None:
    plan = ("plan", "--model", "tiny-random", "--gpu-memory", "24GiB")
    done = run_in(python, "-m", "adaptermix.cli.main", *plan)
    assert done.returncode == 0, done.stderr
    assert "graphs" in done.stdout


def test_the_server_answers_there(python: Path, tmp_path: Path) -> None:
    serve = ("serve", "--model", "tiny-random", "--port", "0", "--encoder", "none")
    places = ("--cache", str(tmp_path / "cache"), "--store", str(tmp_path / "store"))
    command = [str(python), "-E", "-m", "adaptermix.cli.main", *serve, *places]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if line.startswith("ready: "))
            url = ready.split(" on ")[1].split(",")[0]
            body = {"inputs": "a b", "parameters": {"max_new_tokens": 3}}
            assert httpx.post(f"{url}/generate", json=body).status_code == 200
        finally:
            process.kill()
