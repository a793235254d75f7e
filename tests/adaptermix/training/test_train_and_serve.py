"""The scripts that train an adapter, publish it and ask under it, on the tiny model."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptermix.bench.server import server
from tests.conftest import REPOSITORY

SCRIPTS = REPOSITORY / "examples" / "train_and_serve"


@pytest.fixture(scope="module")
def url(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server that the scripts find ready."""
    root = tmp_path_factory.mktemp("server")
    options = ["--model", str(tiny_base), "--store", str(root / "store"), "--encoder", "none"]
    options += ["--kernels", "reference"]
    with server(options, root / "log") as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: str(path.stem))
def test_what_a_script_trains_is_served(
    script: Path, url: str, tiny_base: Path, tmp_path: Path
) -> None:
    """As it stands there, but for the base and one epoch; beside a server that runs."""
    program = tmp_path / "bin" / "adaptermix"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adaptermix.cli.main "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    name = f"places-{script.stem}"
    completed = subprocess.run(
        [str(script), str(tmp_path / name), "--base", str(tiny_base), "--epochs", "1"],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "ADAPTERMIX_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert f"published {name}@1" in completed.stdout
    base, _, places = completed.stdout.partition("the base:")[2].partition(f"\nunder {name}")
    assert len(base) > 20  # the tiny model says little that can be seen
    assert base not in places
