"""Compiles the C++ kernels once a machine, into a cache directory.

The library's name holds a digest of the sources, the compiler's options and the processor's
abilities: a cache that several machines share holds one library for each kind of processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from router_engine.errors import EngineError

SOURCES = Path(__file__).parent / "src"
_MAIN = "api.cpp"
_COMPILERS = ("g++", "c++")
_OPTIONS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Vectors wider than the processor's are split by the compiler; it warns of their ABI.
    "-Wno-psabi",
)
_TIMEOUT_S = 300.0
_TAIL = 2000  # characters of a compiler's complaint that are passed on


class KernelBuildError(EngineError):
    """The kernels could not be compiled; the message holds what the compiler said."""


def library_path(cache: Path) -> Path:
    """Where the library for this machine is kept, be it there or not."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update("\0".join((*_OPTIONS, platform.machine(), _abilities())).encode())
    return cache.expanduser() / f"kernels-{digest.hexdigest()[:16]}.so"


def build(cache: Path) -> Path:
    """The library's path; compiles it first if it is not there, which takes some seconds.

    Raises KernelBuildError. Two processes may build at once: the last one's file stays.
    """
    path = library_path(cache)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = Path(folder) / path.name
        _compile(target)
        target.replace(path)
    return path


def _compile(target: Path) -> None:
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise KernelBuildError(f"no C++ compiler: install one of {', '.join(_COMPILERS)}")
    command = [compiler, *_OPTIONS, str(SOURCES / _MAIN), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{compiler}: {error}") from error
    if done.returncode != 0:
        raise KernelBuildError(f"{compiler} failed: {done.stderr[-_TAIL:]}")


def _abilities() -> str:
    """What the processor can do, as the system says it; one of several equal processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor()} {os.uname().version}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
