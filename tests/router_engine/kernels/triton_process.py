"""Where Triton's kernels run in tests: a process of their own with the interpreter, or a GPU."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

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
    _prepare_the_language_once()


class _Prepared:
    """What the interpreter undoes after a launch: here nothing."""

    def restore(self) -> None: ...


def _prepare_the_language_once() -> None:
    """Let the functions of `triton.language` stay those that the interpreter puts there.

    It puts them there at each launch and at each call of one device function by another, which
    takes longer than kernels of the tests' sizes do, and takes them away for compiled kernels,
    of which this process has none.
    """
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    prepare = interpreter._patch_lang

    @functools.cache
    def prepare_once(function: object) -> _Prepared:
        prepare(function)
        return _Prepared()

    interpreter._patch_lang = prepare_once


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
