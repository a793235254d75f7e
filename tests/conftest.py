"""Downloaded models (`make test` brings them), a newcomer's desk, and how many workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from router_engine.processors import usable_cores

if TYPE_CHECKING:
    from tests.support.hub import Hub

REPOSITORY = Path(__file__).parents[1]
WORKER_BYTES = 4 << 30  # the real model in a test, and a server's three processes

# The same examples everywhere, however long a machine takes for one.
settings.register_profile(
    "anywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("anywhere")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker a usable core, each with WORKER_BYTES of memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(usable_cores(), memory // WORKER_BYTES))


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """No bytes in names of tests: an archive holds the time, and workers must agree on names."""
    return argname if isinstance(val, bytes | bytearray) else None


def _model(name: str) -> Path:
    default = Path("~/.cache/adaptermix").expanduser()
    path = Path(os.environ.get("ADAPTERMIX_CACHE", default)) / "models" / name
    assert path.is_dir(), f"{path} is missing: run `adaptermix pull` (make test does)"
    return path


@pytest.fixture(scope="session")
def real_base() -> Path:
    """SmolLM2-135M-Instruct."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """all-MiniLM-L6-v2."""
    return _model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def example_adapters() -> list[Path]:
    """The four adapters of `examples/adapters`: math, science, code, reading."""
    names = ("math", "science", "code", "reading")
    return [REPOSITORY / "examples" / "adapters" / name for name in names]


@pytest.fixture(scope="session")
def custom_router_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH that begins where pip has installed `examples/custom_router`."""
    site = _installed("custom_router", tmp_path_factory.mktemp("custom-router"))
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session")
def custom_expert_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `sys.path` into which pip has installed `examples/custom_expert`."""
    return _installed("custom_expert", tmp_path_factory.mktemp("custom-expert"))


def _installed(example: str, root: Path) -> Path:
    """The folder below `root` into which pip installs a package of `examples/`."""
    # pip builds inside the source tree
    source = shutil.copytree(REPOSITORY / "examples" / example, root / "source")
    site = root / "site"
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--target", str(site))
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *options, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return site


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence encoder that goes with the tiny random model."""
    from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder

    return save_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of models in place of the one on the internet, and an empty cache for what is there."""
    from tests.support.hub import ask_it, hub_server

    with hub_server() as running:
        ask_it(running, tmp_path / "hub", monkeypatch)
        yield running


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user sees it, with tiny adapters in place of the examples."""
    from tests.support.desk import lay_out

    return lay_out(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="session")
def desk_url(desk: Path, custom_router_path: str, tiny_encoder: Path) -> Iterator[str]:
    """A server of the tiny random model, with adapters and a router under the examples' names."""
    from tests.support.desk import asked

    with asked(desk, custom_router_path, tiny_encoder) as url:
        yield url
