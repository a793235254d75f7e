"""A card that is none, for Triton: kernels are compiled for it, or counted, and compute nothing.

Launches go through Triton's own code up to the driver: what it would compile, and when, is what it
would on a card. So are the grids; what kernels would have written is set to zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.testing import do_bench

from router_engine.backends.cuda import cuda_backend
from router_engine.backends.cuda.graphs import Replay
from router_engine.kernels.triton import triton_operations
from router_engine.kernels.triton.device import fused_kernels, mixture, paged, tiles
from tests.support.capture_lint import CaptureLint

_KERNELS = [
    kernel
    for module in (fused_kernels, mixture, paged, tiles)
    for kernel in vars(module).values()
    if isinstance(kernel, triton.runtime.JITFunction)
]
OnLaunch = Callable[[str, tuple[int, ...], Mapping[str, Any]], None]
"""Called with a kernel's name, the grid and its arguments by name."""

_WRITTEN = frozenset({"out", "residual", "parts", "maxima", "sums", "z", "folded"})


class FakeCard(DriverBase):
    """The driver of an H100 that is not there. compiles, launches: by the name of the kernel."""

    def __init__(self, capability: int = 90) -> None:
        self.compiles: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.by_hand: Counter[str] = Counter()  # launches that no graph made
        self.captures = 0
        self.replays = 0
        self.lints = False  # whether what is captured is looked at
        self.on_launch: OnLaunch | None = None
        self._in_graph = False
        self._target = GPUTarget("cuda", capability, 32)
        self.launcher_cls = self._launcher
        properties = {"max_shared_mem": 227 << 10}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, binary, shared, device: (name, name, 64, 0, 1024),
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        return do_bench

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """As `CudaCapture`: the work runs before it is captured."""
        with self._graph():
            work()
            if self.lints:
                _lint(work)
        self.captures += 1

        def replay() -> Tensor:
            self.replays += 1
            with self._graph():
                return work()

        return replay

    def compile(self, source: Any, **_: object) -> Any:
        """As `triton.compile`, of nothing."""
        name = source.fn.fn.__name__
        self.compiles[name] += 1
        return SimpleNamespace(
            function=name,
            packed_metadata=(),
            launch_metadata=lambda *_: None,
            run=self._launcher(source, None),
        )

    @contextmanager
    def _graph(self) -> Iterator[None]:
        self._in_graph = True
        try:
            yield
        finally:
            self._in_graph = False

    def _launcher(self, source: Any, metadata: object) -> Callable[..., None]:
        name = source.fn.fn.__name__
        written = [place for place, each in enumerate(source.fn.arg_names) if each in _WRITTEN]

        def launch(*arguments: Any) -> None:
            self.launches[name] += 1
            if not self._in_graph:
                self.by_hand[name] += 1
            given = arguments[9:]  # after grid, stream, function, metadata and hooks
            if self.on_launch is not None:
                named = dict(zip(source.fn.arg_names, given, strict=True))
                self.on_launch(name, arguments[:3], named)
            for place in written:
                given[place].zero_()

        return launch


@contextmanager
def fake_card(*, compiling: bool = False, lints: bool = False) -> Iterator[FakeCard]:
    """Triton's card, in this process. compiling: kernels are compiled as for a real one.

    lints: what is captured is looked at, by `CaptureLint`.
    """
    card = FakeCard()
    card.lints = lints
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", card)
        patch.setattr(triton_operations, "interpreted", lambda: True)  # what else runs on a CPU
        patch.setattr(cuda_backend, "run_directly", card.capture)
        if not compiling:
            patch.setattr("triton.compiler.compile", card.compile)
        _forget()
        try:
            yield card
        finally:
            _forget()


def _lint(work: Callable[[], Tensor]) -> None:
    """Nothing that a graph cannot hold, and the same each time."""
    with CaptureLint() as first:
        work()
    with CaptureLint() as second:
        work()
    assert first.seen == second.seen


def _forget() -> None:
    for kernel in _KERNELS:
        kernel.device_caches.clear()
