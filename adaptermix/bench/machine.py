"""The machine and software of a result, the speed of its memory, and the memory of processes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adaptermix.bench.errors import BenchmarkError
from router_engine.processors import usable_cores

LIBRARIES = (
    "adaptermix",
    "torch",
    "transformers",
    "fastapi",
    "uvicorn",
    "uvloop",
    "pyzmq",
    "aiohttp",
)
ROOT = Path(__file__).resolve().parents[2]


def describe_machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, GPU and operating system."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def describe_software() -> dict[str, Any]:
    """Commit (marked when the tree differs from it), date in UTC, library versions."""
    return {
        "commit": commit_of(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def origin(
    kind: str, model: str, serving: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys that every result begins with: what was measured, where, with what and how."""
    return {
        "kind": kind,
        "model": model,
        "machine": describe_machine(),
        "software": describe_software(),
        "serving": serving,
        "settings": settings,
    }


def default_kernels() -> str:
    """The kernels of a benchmark that names none: the fastest that never change in mid-run."""
    return "triton" if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit_of(checkout: Path = ROOT) -> str:
    """The commit that is checked out, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, check=False
        ).stdout.strip()

    if shutil.which("git") is None:
        return "unknown"
    commit = git("rev-parse", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} (with local changes)" if changed else commit


_BYTES = 1 << 28  # far more than any cache


def read_bandwidth(rounds: int) -> float:
    """Bytes a second, the best of the rounds, with all of torch's threads or on the GPU.

    A sum reads every byte once and does next to nothing with it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = torch.ones(_BYTES // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(rounds + 1):
        started = time.perf_counter()
        memory.sum().item()
        best = min(best, time.perf_counter() - started)
    return _BYTES / best


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
