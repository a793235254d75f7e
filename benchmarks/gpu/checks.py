"""Correctness first: some tests of the kernels and one of the engine, compiled for this GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adaptermix.bench.machine import ROOT
from benchmarks.gpu.phases import CardCell, LeftOutError
from benchmarks.gpu.site import Site

_KERNELS = "tests/router_engine/kernels"
# Each with the parameters that `_WORDS` chooses: 23 tests.
KERNEL_TESTS = (
    f"{_KERNELS}/test_triton_attention.py::test_attention",
    f"{_KERNELS}/test_triton_attention.py::test_places_without_work",
    f"{_KERNELS}/test_triton_attention.py::test_silu",
    f"{_KERNELS}/test_triton_mixture.py::test_mix_group",
    f"{_KERNELS}/test_triton_mixture.py::test_mix_linear",
    f"{_KERNELS}/test_triton_mixture.py::test_tokens_of_different_adapters_skip_each_others_rows",
    f"{_KERNELS}/test_conformance.py::test_low_rank_mixtures",
    "tests/router_engine/experts/test_memory.py::test_a_gpu_copies_from_pinned_memory_beside_the_steps",
)
_WORDS = "bfloat16 or places or skip or low_rank or pinned"
ENGINE_TESTS = (
    "tests/router_engine/backends/test_triton_engine.py::test_graphs_serve_every_mixture",
)
_SECONDS = 60.0  # that one of both may take
_SHOWN = 4000  # characters of the output's end


class ChecksFailedError(Exception):
    """Tests failed, or took too long; the message is the end of what they said."""


def check_cells(site: Site) -> list[CardCell]:
    """A cell for the kernels, one for the engine."""
    return [
        CardCell("kernels", partial(_on_a_gpu, site, KERNEL_TESTS, _WORDS)),
        CardCell("engine", partial(_on_a_gpu, site, ENGINE_TESTS, "")),
    ]


def _on_a_gpu(site: Site, tests: Sequence[str], words: str) -> dict[str, Any]:
    if site.device.type != "cuda":
        raise LeftOutError("no GPU")
    return run_tests(ROOT, ("-m", "gpu", "-k", words, *tests), _SECONDS)


def run_tests(folder: Path, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """The last line of pytest, run in a folder. Raises ChecksFailedError."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChecksFailedError(f"not done in {seconds:g} s: {_end(error.output)}") from None
    if done.returncode != 0:
        raise ChecksFailedError(_end(done.stdout))
    return {"said": done.stdout.strip().splitlines()[-1]}


def _end(output: str | bytes | None) -> str:
    """The last line, which sums up, above the last lines."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    last = text[-_SHOWN:].strip()
    return f"{last.rpartition(chr(10))[2]}\n{last}"
