"""Holds processes down to an instruction set: by the environment, or by how they are compiled.

`python -m adaptermix.bench.forced avx2` prints the environment, as arguments of `env`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from adaptermix.bench.errors import BenchmarkError

# Of llama.cpp's build. What is not named for an instruction set is switched off.
_GGML = (
    *("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", "AVX_VNNI"),
    *("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"),
    *("AMX_TILE", "AMX_INT8", "AMX_BF16"),
)
_AVX2 = frozenset({"SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C"})
_AVX512 = _AVX2 | {"AVX512"}
_AVX512_VNNI = _AVX512 | {"AVX512_VNNI", "AVX512_VBMI"}
_AVX512_BF16 = _AVX512_VNNI | {"AVX512_BF16"}


@dataclass(frozen=True, slots=True)
class _Limit:
    """The libraries' names of an instruction set; None: they know no limit of that kind."""

    onednn: str | None
    aten: str | None
    mkl: str | None
    ggml: frozenset[str]


# By our own names.
_LIMITS: Mapping[str, _Limit] = {
    "avx2": _Limit("AVX2", "avx2", "AVX2", _AVX2),
    "avx2_vnni": _Limit("AVX2_VNNI", "avx2", "AVX2", _AVX2 | {"AVX_VNNI"}),
    "avx512": _Limit("AVX512_CORE", "avx512", "AVX512", _AVX512),
    "avx512_vnni": _Limit("AVX512_CORE_VNNI", "avx512", "AVX512", _AVX512_VNNI),
    "avx512_bf16": _Limit("AVX512_CORE_BF16", "avx512", "AVX512", _AVX512_BF16),
    "amx": _Limit(
        *("AVX512_CORE_AMX", "avx512", None),
        _AVX512_BF16 | {"AMX_TILE", "AMX_INT8", "AMX_BF16"},
    ),
    # On ARM ours alone can be held down.
    "neon": _Limit(None, None, None, frozenset()),
    "neon_bf16": _Limit(None, None, None, frozenset()),
}
ISAS = tuple(_LIMITS)


def environment(isa: str | None) -> dict[str, str]:
    """Variables under which our kernels, ATen, oneDNN and MKL use no more than `isa`.

    None leaves the machine as found. Raises BenchmarkError for a name that nobody knows.
    """
    if isa is None:
        return {}
    limit = _limit(isa)
    variables = {
        "ADAPTERMIX_CPU_ISA": isa,
        "ATEN_CPU_CAPABILITY": limit.aten,
        "ONEDNN_MAX_CPU_ISA": limit.onednn,
        "MKL_ENABLE_INSTRUCTIONS": limit.mkl,
    }
    return {name: value for name, value in variables.items() if value is not None}


def pairs(isa: str | None) -> list[str]:
    """The same as arguments of `env`."""
    return [f"{name}={value}" for name, value in environment(isa).items()]


def cmake_options(isa: str | None) -> list[str]:
    """Of a build of llama.cpp: for this very processor, or for no more than `isa`."""
    if isa is None:
        return ["-DGGML_NATIVE=ON"]
    used = _limit(isa).ggml
    switches = [f"-DGGML_{name}={'ON' if name in used else 'OFF'}" for name in _GGML]
    return ["-DGGML_NATIVE=OFF", *switches]


def check(isa: str | None) -> None:
    """Raises BenchmarkError for a name that nobody knows."""
    if isa is not None:
        _limit(isa)


def _limit(isa: str) -> _Limit:
    if isa not in _LIMITS:
        raise BenchmarkError(f"isa is {isa!r}; it must be one of {', '.join(ISAS)}")
    return _LIMITS[isa]


if __name__ == "__main__":
    try:
        sys.stdout.write(" ".join(pairs(sys.argv[1])) + "\n")
    except BenchmarkError as error:
        sys.exit(str(error))
