"""Streams and events of a card that is none, and a checker of who may touch what lies in memory.

Everything runs at once, on the CPU; what is checked is whether a card, where each stream runs by
itself, would have had to run it in that order. Every access is known by its stream and its place
there; a stream, and the host, know up to which place each stream has come as they see it. What is
not ordered after the last write, or writes what others may still read, is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Range = tuple[int, int]  # addresses: the first, and the one past the last

_Clock = dict["FakeStream", int]


class StreamError(AssertionError):
    """An access that nothing orders after the one before."""


class FakeEvent:
    """Reached once it has been asked for `delay` times."""

    def __init__(self, checker: StreamChecker, clock: _Clock, delay: int) -> None:
        self._checker = checker
        self._clock = clock
        self._delay = delay

    def query(self) -> bool:
        self._delay -= 1
        if self._delay >= 0:
            return False
        _join(self._checker.host, self._clock)
        return True


class FakeStream:
    """A queue of work."""

    def __init__(self, checker: StreamChecker) -> None:
        self._checker = checker
        self.clock: _Clock = {}
        self.place = 0

    def wait_stream(self, other: FakeStream) -> None:
        _join(self.clock, other.clock)

    def record_event(self) -> FakeEvent:
        return FakeEvent(self._checker, dict(self.clock), self._checker.delay)


@dataclass(frozen=True, slots=True)
class _Access:
    stream: FakeStream
    place: int
    what: str
    writes: bool


class StreamChecker(TorchDispatchMode):
    """Checks accesses to watched memory: torch's operations, and launches that it is told of.

    delay: how often an event is asked for before it is reached.
    """

    def __init__(self, delay: int = 0) -> None:
        super().__init__()
        self.delay = delay
        self.host: _Clock = {}
        self.current = FakeStream(self)
        self.checked = 0
        self.streams: set[FakeStream] = set()
        self._watched: Range = (0, 0)
        self._accesses: dict[Range, list[_Access]] = defaultdict(list)

    def watch(self, tensor: Tensor) -> None:
        """Check what touches a tensor's memory."""
        self._watched = _range(tensor)

    def launch(self, what: str, reads: Sequence[Range], writes: Sequence[Range] = ()) -> None:
        """Work on the current stream. Raises StreamError."""
        reads, writes = self._inside(reads), self._inside(writes)
        if not reads and not writes:
            return
        stream = self.current
        self.streams.add(stream)
        _join(stream.clock, self.host)  # the host asks for it now
        for touched in reads:
            self._check(what, stream, touched, lambda earlier: earlier.writes)
        for touched in writes:
            self._check(what, stream, touched, lambda earlier: True)
            self._forget(touched)
        stream.place += 1
        stream.clock[stream] = stream.place
        for touched, is_write in (*((r, False) for r in reads), *((w, True) for w in writes)):
            self._accesses[touched].append(_Access(stream, stream.place, what, is_write))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:
            reads: list[Range] = []
            writes: list[Range] = []
            names = [argument.name for argument in func._schema.arguments]
            written = {
                argument.name
                for argument in func._schema.arguments
                if argument.alias_info is not None and argument.alias_info.is_write
            }
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                found = [_range(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
                (writes if name in written else reads).extend(found)
            self.launch(str(func), reads, writes)
        return func(*args, **kwargs)

    def _inside(self, ranges: Sequence[Range]) -> list[Range]:
        first, last = self._watched
        return [each for each in ranges if first <= each[0] < each[1] <= last]

    def _check(self, what: str, stream: FakeStream, touched: Range, matters: Any) -> None:
        for held, accesses in self._accesses.items():
            if held[0] >= touched[1] or held[1] <= touched[0]:
                continue
            for earlier in accesses:
                if not matters(earlier) or earlier.stream is stream:
                    continue
                self.checked += 1
                if stream.clock.get(earlier.stream, 0) < earlier.place:
                    done = "written" if earlier.writes else "read"
                    raise StreamError(f"{what} does not wait for what {earlier.what} has {done}")

    def _forget(self, written: Range) -> None:
        """What lies within a write is ordered before it; whoever waits for it waits for all."""
        within = [
            held for held in self._accesses if written[0] <= held[0] and held[1] <= written[1]
        ]
        for held in within:
            del self._accesses[held]


@contextmanager
def fake_streams(checker: StreamChecker) -> Iterator[None]:
    """torch's CUDA streams, and pinned memory, as far as `CudaMemory` uses them."""

    @contextmanager
    def within(stream: FakeStream) -> Iterator[None]:
        before, checker.current = checker.current, stream
        try:
            yield
        finally:
            checker.current = before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream(checker))
        patch.setattr(torch.cuda, "current_stream", lambda: checker.current)
        patch.setattr(torch.cuda, "stream", within)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())
        yield


def _range(tensor: Tensor) -> Range:
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return 0, 0
    span = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    first = tensor.data_ptr()
    return first, first + span * tensor.element_size()


def _join(clock: _Clock, other: _Clock) -> None:
    for stream, place in other.items():
        clock[stream] = max(clock.get(stream, 0), place)
