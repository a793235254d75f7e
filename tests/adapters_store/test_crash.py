"""kill -9 at every step of a publish, of a delete and of a collection leaves the store whole."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("work", "least_steps"),
    [("publish", 25), pytest.param("collect", 15, marks=pytest.mark.slow)],
)
def test_killed_at_every_step(tmp_path: Path, work: str, least_steps: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.adapters_store.killing", str(tmp_path / "store"), work],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    steps, versions = map(int, done.stdout.split())
    assert steps >= least_steps
    assert versions <= steps


def test_two_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    program = "import sys, pathlib; from adapters_store.store import AdapterStore; " + (
        "sys.stdin.readline(); AdapterStore.open(pathlib.Path(sys.argv[1])).close()"
    )
    with ExitStack() as all_ended:
        processes = [
            all_ended.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(tmp_path / "store")],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 3
