"""Where and with what a result was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

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


def default_kernels() -> str:
    """What a benchmark measures where it is not told: the fastest that never changes in mid-run."""
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
