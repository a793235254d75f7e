"""While a graph is captured no other thread pins memory: on a card that would void the capture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters_store.types import AdapterManifest
from router_engine.backends.cuda import graphs
from router_engine.backends.cuda.graphs import CudaCapture
from router_engine.device_calls import DEVICE_CALLS
from router_engine.experts import memory
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.memory import CudaMemory
from tests.support.streams import StreamChecker, fake_streams
from tests.support.waiting import wait_for

LOADERS = 3
CAPTURES = 5


class _Guard:
    """A card's captures and pinned memory, as far as threads may get in each other's way."""

    def __init__(self) -> None:
        self.capturing: int | None = None  # the thread that does
        self.pinned = 0
        self.asking = set[int]()  # threads that wait for the lock

    @contextmanager
    def graph(self, graph: object, **options: Any) -> Iterator[None]:
        assert options["capture_error_mode"] == "thread_local"
        self.capturing = threading.get_ident()
        try:
            yield
        finally:
            self.capturing = None

    def pin(self, tensor: Tensor) -> Tensor:
        if self.capturing not in (None, threading.get_ident()):
            raise RuntimeError("pinned while another thread captures")
        self.pinned += 1
        return tensor.clone()


class _Lock:
    """A lock that tells who waits for it."""

    def __init__(self, guard: _Guard, lock: AbstractContextManager[Any]) -> None:
        self._guard = guard
        self._lock = lock

    def __enter__(self) -> None:
        self._guard.asking.add(threading.get_ident())
        self._lock.__enter__()
        self._guard.asking.discard(threading.get_ident())

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Guard]:
    made = _Guard()
    with fake_streams(StreamChecker()):
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: made.pin(tensor))
        monkeypatch.setattr(torch.cuda, "graph", made.graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        new_graph = SimpleNamespace(replay=lambda: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: new_graph)
        yield made


def _use(lock: AbstractContextManager[Any], guard: _Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (graphs, memory):
        monkeypatch.setattr(module, "DEVICE_CALLS", _Lock(guard, lock))


def _adapter() -> HostAdapter:
    rows = ExpertRows(torch.randn(4, 8), torch.randn(4, 6), 1.0, torch.randn(4))
    manifest = AdapterManifest(format="peft", experts=())
    return HostAdapter.packed("a", manifest, AdapterParts({"q": rows}, {}), 0.0)


def _capture_beside_loaders(guard: _Guard) -> list[Exception]:
    """Errors of loaders that prepare adapters while graphs are captured."""
    adapter, errors = _adapter(), list[Exception]()
    held, ended = CudaMemory(1 << 16, torch.device("cpu")), threading.Event()

    def load() -> None:
        while not ended.is_set():
            try:
                held.prepare(adapter)
            except RuntimeError as error:
                errors.append(error)
                return

    def work() -> Tensor:
        if guard.capturing is not None:
            wait_for(lambda: len(guard.asking) == LOADERS or bool(errors))
        return torch.zeros(1)

    loaders = [threading.Thread(target=load) for _ in range(LOADERS)]
    for loader in loaders:
        loader.start()
    try:
        capture: Callable[[Callable[[], Tensor]], object] = CudaCapture()
        for _ in range(CAPTURES):
            if not errors:
                capture(work)
    finally:
        ended.set()
        for loader in loaders:
            loader.join()
    return errors


def test_loaders_wait_for_a_capture(guard: _Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(DEVICE_CALLS, guard, monkeypatch)
    assert _capture_beside_loaders(guard) == []
    assert guard.pinned > 0


def test_without_the_lock_they_would_not(guard: _Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(nullcontext(), guard, monkeypatch)
    assert _capture_beside_loaders(guard)
