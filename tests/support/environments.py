"""Environments that hold some of the packages that are installed here: nothing is downloaded."""

from __future__ import annotations

import re
import subprocess
import venv
from collections.abc import Collection, Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent


def requirements(package: str) -> list[str]:
    """The names of what a package requires on this machine, without its extras."""
    required = map(Requirement, distribution(package).requires or ())
    return [
        each.name for each in required if not each.marker or each.marker.evaluate({"extra": ""})
    ]


def make_environment(home: Path, packages: Iterable[str], *, without: Collection[str] = ()) -> Path:
    """The interpreter of a new environment in `home`: `packages` and all that they require.

    without: names of packages that are left out wherever they are required.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
    (site,) = home.glob("lib/python3*/site-packages")
    for each in _with_requirements(packages, without):
        tops = {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (site / top).symlink_to(Path(str(each.locate_file(top))).resolve())
    return home / "bin" / "python"


def run_in(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in such an environment, from the root of the project."""
    command = (str(python), "-E", *arguments)  # nothing that this run was given
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _with_requirements(names: Iterable[str], without: Collection[str]) -> list[Distribution]:
    distributions: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions or name in without:
            continue
        distributions[name] = distribution(name)
        waiting += requirements(name)
    return list(distributions.values())
