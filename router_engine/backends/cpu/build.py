"""The C++ kernels as one library for all instruction sets of an architecture, and who compiles it.

A wheel, an image or an installation carries it, compiled ahead (`compile_shipped`). Where none was
shipped it is compiled on first use into a cache directory, for the sets that this machine has.
The library's name holds a digest of its sources and options and names what it was made for.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from pathlib import Path

from adapters_store.home import expanded, is_homeless
from router_engine.errors import EngineError
from router_engine.processors import usable_cores

SOURCES = Path(__file__).parent / "src"
SHIPPED = Path(__file__).parent / "lib"
# By architecture, from narrow to wide: the order in which they are thought to be faster.
ISAS_OF = {
    "x86_64": ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"),
    "aarch64": ("neon", "neon_bf16"),
}
_ANY = ("generic",)
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "popcnt"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_BF16 = _AVX512 | {"avx512_vnni", "avx512_bf16"}
_NEEDS = {
    "avx2": _AVX2,
    "avx2_vnni": _AVX2 | {"avx_vnni"},
    "avx512": _AVX512,
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    "avx512_bf16": _BF16,
    "amx": _BF16 | {"amx_tile", "amx_bf16", "amx_int8"},
    "neon_bf16": frozenset({"asimddp", "bf16"}),
}
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}
_COMPILERS = ("g++", "c++")
_OPTIONS = (
    "-O3",
    "-std=c++20",
    "-pthread",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Vectors are never passed across the library's border, which is what this would warn of.
    "-Wno-psabi",
)
_TIMEOUT_S = 1800.0
_TAIL = 2000  # characters of a compiler's complaint that are passed on


class KernelBuildError(EngineError):
    """The kernels could not be compiled; the message holds what the compiler said."""


def architecture() -> str:
    """The machine's architecture, by the name that Linux gives it."""
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


def known_isas() -> tuple[str, ...]:
    """The instruction sets that there are kernels for on this architecture, narrow to wide."""
    return ISAS_OF.get(architecture(), _ANY)


def known_isa(isa: str | None) -> str | None:
    """The same, or None. Raises ValueError for an instruction set of another architecture."""
    if isa is not None and isa not in known_isas():
        raise ValueError(f"is of another architecture; here there are {', '.join(known_isas())}")
    return isa


def library_path(cache: Path, isas: Sequence[str] | None = None) -> Path:
    """The library's path, be it there or not: shipped with the package, or else in the cache.

    isas: what it must hold; None: what this machine runs.
    """
    for held in (known_isas(), machine_isas()):
        if isas is None and (shipped := SHIPPED / _name(held)).exists():
            return shipped
    return expanded(cache) / _name(machine_isas() if isas is None else isas)


def build(cache: Path, isas: Sequence[str] | None = None) -> Path:
    """The library's path; compiles it first if it is not there, which takes half a minute.

    Raises KernelBuildError. Two processes may build at once: the last one's file stays.
    """
    path = library_path(cache, isas)
    if not path.exists():
        if is_homeless(path):
            raise KernelBuildError(f"{path.parent} begins at no home directory that is known")
        _compile(path, machine_isas() if isas is None else isas)
    return path


def compile_shipped(folder: Path = SHIPPED, isas: Sequence[str] | None = None) -> Path:
    """The library, compiled ahead into what is installed.

    isas: what it holds; None: every set of the architecture, as for a wheel or an image. Raises
    KernelBuildError.
    """
    isas = known_isas() if isas is None else isas
    path, here = folder / _name(isas), SHIPPED / _name(isas)
    if not path.exists() and here.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(here, path)
    elif not path.exists():
        _compile(path, isas)
    return path


def _name(isas: Sequence[str]) -> str:
    return f"kernels-{_digest()}-{architecture()}-{'+'.join(isas)}.so"


@once
def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update("\0".join(_OPTIONS).encode())
    return digest.hexdigest()[:16]


def isas_of(abilities: AbstractSet[str]) -> tuple[str, ...]:
    """The known sets whose instructions are among a processor's abilities, as Linux names them."""
    return tuple(isa for isa in known_isas() if _NEEDS.get(isa, frozenset()) <= abilities)


def processor() -> str:
    """The processor's name and abilities, as the system gives them."""
    return "\n".join(line for line in _cpuinfo() if _names(line) or _lists(line))


def machine_isas() -> tuple[str, ...]:
    """The sets of this machine. The library itself has the last word on what runs."""
    lines = _cpuinfo()
    if not lines:
        return known_isas()
    return isas_of({word for line in lines if _lists(line) for word in line.split()})


@once
def _cpuinfo() -> tuple[str, ...]:
    """Linux's description of one of several equal processors; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return ()
    return tuple(first.splitlines())


def _lists(line: str) -> bool:
    return line.startswith(("flags", "Features"))


def _names(line: str) -> bool:
    return line.startswith(("model name", "CPU part"))


def _compile(target: Path, isas: Sequence[str]) -> None:
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise KernelBuildError(f"no C++ compiler: install one of {', '.join(_COMPILERS)}")
    try:
        _compile_with(compiler, target, isas)
    except OSError as error:
        raise KernelBuildError(f"{target.parent} cannot be written: {error}") from error


def _compile_with(compiler: str, target: Path, isas: Sequence[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary)
        jobs: list[tuple[str, tuple[str, ...]]] = [("library.cpp", ()), ("pool.cpp", ())]
        jobs += [("kernels.cpp", (f"-DMIX_{isa.upper()}",)) for isa in isas]
        objects = [folder / f"{number}.o" for number in range(len(jobs))]
        commands = [
            [compiler, *_OPTIONS, *defined, "-c", str(SOURCES / source), "-o", str(made)]
            for (source, defined), made in zip(jobs, objects, strict=True)
        ]
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(_run, commands))
        linked = folder / target.name
        _run([compiler, *_OPTIONS, "-shared", *map(str, objects), "-o", str(linked)])
        linked.replace(target)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise KernelBuildError(f"{command[0]} failed: {done.stderr[-_TAIL:]}")


def main() -> None:
    """`python -m router_engine.backends.cpu.build [--all]`: compile ahead for this machine, or all.

    Where nothing compiles, the reference serves: that is said, and is no failure.
    """
    try:
        compile_shipped(isas=None if "--all" in sys.argv[1:] else machine_isas())
    except KernelBuildError as error:
        sys.stderr.write(f"The CPU kernels are not compiled, and torch computes: {error}\n")


if __name__ == "__main__":
    main()
