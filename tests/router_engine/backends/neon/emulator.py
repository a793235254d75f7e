"""Programs for 64-bit ARM on whatever machine this is: cross-compiled, then run by QEMU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import HANG_SECONDS

COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
# Static: the emulator then needs no ARM libraries on this machine. More than -O1 takes longer to
# compile than it saves in the emulator.
OPTIONS = ("-std=c++20", "-O1", "-static", "-pthread")
BF16 = "-march=armv8.2-a+dotprod+bf16"
DOTPROD = "-march=armv8.2-a+dotprod"
NEWEST = "max"  # all that QEMU can emulate
WITHOUT_BF16 = "neoverse-n1"
_TAIL = 4000  # characters of what a failing program said


@dataclass(frozen=True, slots=True)
class Arm:
    """A compiler and an emulator; programs lie in a folder of their own."""

    compiler: str
    emulator: str
    folder: Path

    @classmethod
    def find(cls, folder: Path) -> Arm:
        """What `scripts/ensure-arm.sh` brings; fails where it isn't there."""
        compiler = shutil.which(COMPILER)
        emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
        assert compiler is not None, f"{COMPILER} is missing: scripts/ensure-arm.sh (make test)"
        assert emulator is not None, f"{EMULATORS[0]} is missing: scripts/ensure-arm.sh (make test)"
        return cls(compiler, emulator, folder)

    def compile(self, name: str, sources: Sequence[Path], *options: str) -> Path:
        """The program made of `sources`; fails with what the compiler said."""
        program = self.folder / name
        command = [self.compiler, *OPTIONS, *options, *map(str, sources), "-o", str(program)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
        )
        assert done.returncode == 0, done.stderr[-_TAIL:]
        return program

    def part(self, name: str, source: Path, *options: str) -> Path:
        """An object file, to be one of a program's `sources`."""
        return self.compile(name, [source], "-c", *options)

    def run(self, program: Path, *arguments: str, cpu: str = NEWEST) -> str:
        """What the program prints on a processor of that kind; fails unless its exit code is 0."""
        done = self.attempt(program, *arguments, cpu=cpu)
        assert done.returncode == 0, (done.stdout + done.stderr)[-_TAIL:]
        return done.stdout

    def attempt(
        self, program: Path, *arguments: str, cpu: str = NEWEST
    ) -> subprocess.CompletedProcess[str]:
        """The program's end, whatever it is. Raises TimeoutExpired, with the program killed."""
        command = [self.emulator, "-cpu", cpu, str(program), *arguments]
        # In the folder: QEMU leaves a core file where a program dies.
        return subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
        )
