"""What each command and each process loads: nobody waits for libraries that only others need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adaptermix.cli.main import COMMANDS

_WORKS = """
import os
import sys

import server.settings  # which all of them have
from adaptermix.cli.main import COMMANDS, app, command


def server(place):
    import server.serving
    from server.models import BaseFiles, load_tokenizer

    load_tokenizer(BaseFiles("tiny", place))


def run(*arguments):
    app(list(arguments), standalone_mode=False)


place = sys.argv[1]
WORKS = {name: lambda name=name: command(name) for name in COMMANDS}
WORKS["adapters ls"] = lambda: run("adapters", "ls", "--url", "http://127.0.0.1:9")
WORKS["keys ls"] = lambda: run("keys", "ls", "--store", place + "/store")
WORKS["server"] = lambda: server(place)
for name, work in WORKS.items():
    if os.fork() == 0:
        try:
            work()
        except Exception as error:
            sys.stderr.write(f"{name}: {error!r}\\n")
        names = sorted(n for n in sys.modules if n.count(".") < 2)
        print(name, ",".join(names), sep=": ", flush=True)
        os._exit(0)
    os.wait()
"""
_MODELS = {"torch", "transformers", "accelerate", "peft", "gguf", "safetensors", "tokenizers"}
_SCIENCE = {"scipy", "sklearn", "pandas", "matplotlib", "sympy", "numba"}
_STORE = {"sqlalchemy", "alembic", "psycopg", "obstore"}
_SERVER = {"fastapi", "starlette", "uvicorn", "prometheus_client", "structlog"}
_OURS = {"adaptermix.bench", "adaptermix.evaluation", "adaptermix.training"}
_ASKING = _MODELS | _SCIENCE | _STORE | _SERVER | _OURS | {"numpy"}
FORBIDDEN = {
    **dict.fromkeys(COMMANDS, _MODELS | _SCIENCE | _STORE | _SERVER),
    **dict.fromkeys(("adapters", "adapters ls", "generate"), _ASKING),
    **dict.fromkeys(("serve", "pull", "doctor", "keys"), _ASKING | {"httpx"}),
    "keys ls": _MODELS | _SCIENCE | _SERVER | _OURS | {"psycopg", "httpx"},
    "server": (_MODELS | _SCIENCE | _OURS) - {"transformers", "safetensors", "tokenizers"},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The packages and modules that each has loaded, in a process of its own."""
    from router_engine.model.tiny_tokenizer import tiny_tokenizer

    place = tmp_path_factory.mktemp("imports")
    tiny_tokenizer().save_pretrained(place)
    done = subprocess.run(
        [sys.executable, "-c", _WORKS, str(place)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: set(modules.split(",")) for name, _, modules in found if modules}


@pytest.mark.parametrize("work", FORBIDDEN)
def test_nothing_is_loaded_that_only_others_need(loaded: dict[str, set[str]], work: str) -> None:
    assert "rich" in loaded[work]
    assert loaded[work] & FORBIDDEN[work] == set()
