"""Memory of processes, as Linux tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError

_IMPORT = "import torch, transformers, sys; print(flush=True); sys.stdin.read()"


def descendants(pid: int) -> list[int]:
    """A process and all that it has started."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += descendants(int(child))
    return pids


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; shared pages are split among users."""
    return sum(_proportional(member) for member in descendants(pid))


def above_import(pid: int) -> int:
    """Resident memory of a process and its descendants, each above what its libraries take.

    That is what a process takes which imports torch and transformers and does nothing else. It is
    measured beside them: pages of libraries are shared.
    """
    users = [
        member
        for member in descendants(pid)
        if "libtorch" in Path(f"/proc/{member}/maps").read_text()
    ]
    return resident_bytes(pid) - len(users) * import_bytes()


def import_bytes() -> int:
    """Resident memory of a process that imports torch and transformers, and does nothing else."""
    with subprocess.Popen(
        [sys.executable, "-c", _IMPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise BenchmarkError("torch and transformers cannot be imported")
        size = resident_bytes(process.pid)
        process.communicate()
        return size


def _proportional(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * kilobytes
