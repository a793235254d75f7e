"""Where Triton's kernels run in tests: a process of their own with the interpreter, or a GPU."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Protocol

import pytest
import torch

from tests.support.waiting import HANG_SECONDS


class Run(Protocol):
    """Calls a check with a device before its own arguments; raises what it raises."""

    def __call__(
        self, check: Callable[..., None], *arguments: object, **options: object
    ) -> None: ...


def _start_interpreter() -> None:
    """Triton reads the variable when it is imported and when a kernel is defined."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """One process for all tests, so that the rest of the suite meets no interpreted kernel."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _start_interpreter) as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a check in the interpreter, and on a GPU where one is asked for."""
    if request.param == "cuda":
        return lambda check, *arguments, **options: check("cuda", *arguments, **options)
    pool: ProcessPoolExecutor = request.getfixturevalue("interpreter")

    def interpret(check: Callable[..., None], *arguments: object, **options: object) -> None:
        pool.submit(check, "cpu", *arguments, **options).result(HANG_SECONDS)

    return interpret
