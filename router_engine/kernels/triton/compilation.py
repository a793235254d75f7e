"""Kernels compiled before a step needs them, several at once; Triton keeps them on disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from triton import AsyncCompileMode

from router_engine.kernels.triton.launch import compiles_only, interpreted
from router_engine.processes.progress import OnProgress
from router_engine.processors import usable_cores


@contextmanager
def compiled_ahead(on_progress: OnProgress) -> Iterator[None]:
    """Launches in the block run nothing; at its end their kernels are compiled, and loaded.

    on_progress: of kernels. Raises Triton's errors for a kernel that the device cannot run.
    """
    token = compiles_only.set(True)
    try:
        if interpreted():  # there is nothing to compile
            yield
            return
        # Threads do: the compiler lets go of the GIL, and the assembler is a process.
        with ThreadPoolExecutor(usable_cores()) as pool, AsyncCompileMode(pool) as mode:
            yield
            for done, _ in enumerate(as_completed(mode.raw_futures), 1):
                on_progress(done, len(mode.raw_futures))
        for kernel in mode.future_kernels.values():
            _ = kernel.result().run  # loads it, which a first launch would wait for
    finally:
        compiles_only.reset(token)
