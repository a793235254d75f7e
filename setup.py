"""The kernels, compiled into the wheel: `pyproject.toml` says everything else."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from router_engine.backends.cpu.build import KernelBuildError, compile_shipped


class BuildWithKernels(build_py):
    """Python's files, then the library of kernels for every set of this architecture."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # deploy/install.sh compiles for the one machine
            return
        folder = Path(self.build_lib) / "router_engine" / "backends" / "cpu" / "lib"
        try:
            compile_shipped(folder)
        except KernelBuildError as error:
            self.warn(f"the wheel has no CPU kernels, which will be compiled on first use: {error}")


class PlatformDistribution(Distribution):
    """A wheel with compiled code is for one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=PlatformDistribution)
