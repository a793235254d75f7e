"""An environment of its own for each peer, made once and kept in a cache directory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import httpx

from adaptermix.bench.errors import BenchmarkError
from adapters_store.home import expanded, is_homeless

TORCH = "torch==2.13.0"
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_TAIL = 20  # lines of a log that an error quotes

# What a shell sets for our own processes is not the peers' best.
FREE = ("env", "-u", "OMP_NUM_THREADS", "-u", "OMP_WAIT_POLICY")

Install = Callable[["PeerEnvironment"], None]


class PeerEnvironment:
    """A virtual environment with one peer, and a folder for what it needs beside."""

    def __init__(self, name: str, cache: Path) -> None:
        """Raises BenchmarkError for a cache in a home directory that is not known."""
        if is_homeless(cache):
            raise BenchmarkError(f"cache {str(cache)!r} begins at no home directory that is known")
        self.name = name
        self.folder = expanded(cache).absolute() / name
        self.log = self.folder / "install.log"
        self._stamp = self.folder / "installed"

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def ensure(self, recipe: str, install: Install) -> None:
        """Install where it is not yet, or where the recipe has changed.

        Raises BenchmarkError with the end of the log when something fails.
        """
        if self.has(recipe):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (self.log, self._stamp):  # where this fails, what was there is gone
            old.unlink(missing_ok=True)
        bare = ("--clear", "--without-pip")  # pip takes most of the time, and not all need it
        self.run(sys.executable, "-m", "venv", *bare, str(self.folder / "venv"))
        install(self)
        self._stamp.write_text(_digest(recipe))

    def has(self, recipe: str) -> bool:
        """Whether it is installed by this recipe."""
        return self._stamp.exists() and self._stamp.read_text() == _digest(recipe)

    def pip(self, *arguments: str, environment: Sequence[str] = ()) -> None:
        """`pip` in the environment; `environment` holds NAME=value pairs for what it builds."""
        if not (self.folder / "venv" / "bin" / "pip3").exists():
            self.run(self.python, "-m", "ensurepip")
        self.run("env", *environment, self.python, "-m", "pip", *arguments)

    def install_torch(self) -> None:
        """The build for CPUs where its index is reached: the other one brings gigabytes of CUDA."""
        self.pip("install", "-q", TORCH, *_index())

    def constraint(self) -> Path:
        """A file that keeps the torch that is there."""
        path = self.folder / "constraints.txt"
        path.write_text(f"{TORCH}\n")
        return path

    def run(self, *command: str) -> None:
        """Run a command into the log."""
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            # Not where the command was started: pip would take this project for installed.
            done = subprocess.run(
                command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            raise BenchmarkError(f"{self.name} cannot be installed:\n{tail(self.log)}")

    def output(self, *command: str) -> str:
        """The output of a command in the environment."""
        done = subprocess.run([self.python, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"{self.name}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def version_of(self, package: str) -> str:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        return self.output("-c", code)


def ours(package: str) -> str:
    """A requirement for the version that runs here: the peer gets the same."""
    return f"{package}=={version(package)}"


def _digest(recipe: str) -> str:
    return hashlib.sha256(recipe.encode()).hexdigest()


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])


def _index() -> list[str]:
    try:
        reached = httpx.head(f"{_CPU_INDEX}/torch/", timeout=5).is_success
    except httpx.HTTPError:
        reached = False
    return ["--extra-index-url", _CPU_INDEX] if reached else []
