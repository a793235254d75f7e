"""Kernels that Triton compiles: after a warm-up there should be none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Compiles:
    """Kernels compiled, or read from Triton's files, so far."""

    count: int = 0


@contextmanager
def counted_compiles() -> Iterator[Compiles]:
    """Counts while it is entered. Where there is no Triton nothing is compiled."""
    compiles = Compiles()
    if importlib.util.find_spec("triton") is None:
        yield compiles
        return
    from triton import knobs

    def count(**_: object) -> None:
        compiles.count += 1

    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = count
    try:
        yield compiles
    finally:
        knobs.runtime.jit_post_compile_hook = before
